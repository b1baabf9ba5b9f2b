"""Every Python block of the README runs, in order, in one session, as a reader would type it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__readme__"}
    blocks = list(BLOCK.finditer(text))
    assert blocks, "the README shows no Python"
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        source = "\n" * line + block.group(1)  # so that a traceback names the README's line
        exec(compile(source, str(README), "exec"), namespace)


def test_readme_commands_exist() -> None:
    """Each `make` target and `python -m` module that the README names is there."""
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)", text)) <= targets
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (README.parent / module.replace(".", "/")).with_suffix(".py").exists(), module
