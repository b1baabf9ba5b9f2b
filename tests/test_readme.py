"""Every Python block of the README and of the pages runs, as a reader would type it.

The blocks of a page run in order, in one namespace. A block of ```` ```text ```` right after one of
```` ```python ```` is what that prints: word for word, numbers within 5% (kernels take another
workspace on another CPU); ``...`` ends what is shown. ``pytest --overwrite`` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.request import DEFAULT_LIMITS
from planner.solvers import Limits
from tests.by_default import slow_but

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*\.?\d*")
REST = "...\n"
WITH_PYTHON = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
QUICK = {page for page in WITH_PYTHON if page.stem != "out_of_memory"}  # that plans for a minute


@pytest.fixture
def ample() -> Iterator[None]:
    """Let time end no search, however busy the machine: pages show what an idle one prints."""
    object.__setattr__(DEFAULT_LIMITS, "seconds", 600.0)
    yield
    object.__setattr__(DEFAULT_LIMITS, "seconds", Limits().seconds)


@pytest.mark.usefixtures("ample")
@pytest.mark.parametrize("page", slow_but(QUICK, WITH_PYTHON), ids=lambda page: page.stem)
def test_blocks_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in list(BLOCK.finditer(text)):
        line = text.count("\n", 0, block.start(1))
        source = "\n" * line + block[1]  # so that a traceback names the page's line
        capsys.readouterr()
        exec(compile(source, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        if block[2] is not None and request.config.getoption("--overwrite"):
            _rewrite(page, block[1], block[2], printed)
        elif block[2] is not None:
            _compare(printed, block[2])


def test_what_is_shown_is_compared() -> None:
    _compare("peak 400 MB\nmore\n", "peak 401 MB\n...\n")
    for wrong in ("peak 500 MB\n...\n", "peek 400 MB\n...\n", "peak 400 MB\n"):
        with pytest.raises(AssertionError):
            _compare("peak 400 MB\nmore\n", wrong)


def test_readme_commands_exist() -> None:
    """Each `make` target and `python -m` module that the pages name is there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:`|    )make ([\w-]+)", text)) <= targets, page
        for module in re.findall(r"-m ((?:benchmarks|tests|docs)\.\w+)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def _compare(printed: str, shown: str) -> None:
    if shown.endswith(REST):
        shown = shown.removesuffix(REST)
        printed = "".join(printed.splitlines(keepends=True)[: shown.count("\n")])
    words, numbers = _parted(printed)
    expected_words, expected_numbers = _parted(shown)
    assert words == expected_words, printed
    assert numbers == pytest.approx(expected_numbers, rel=0.05, abs=0.3), printed


def _parted(text: str) -> tuple[str, list[float]]:
    """Part a text into words, however far apart, and numbers."""
    words = " ".join(NUMBER.sub("#", text).split())
    return words, [float(n.replace(",", "")) for n in NUMBER.findall(text)]


def _rewrite(page: Path, source: str, shown: str, printed: str) -> None:
    if shown.endswith(REST):
        count = shown.count("\n") - 1
        printed = "".join(printed.splitlines(keepends=True)[:count]) + REST
    before, found, after = page.read_text(encoding="utf-8").partition(source)
    after = after.replace(f"```text\n{shown}```", f"```text\n{printed}```", 1)
    page.write_text(before + found + after, encoding="utf-8")
