"""The documentation builds without a warning, and every page is reached from the first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("pdoc", reason="the extra [docs] is not installed")


def built(target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "docs.build_site", str(target)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_builds_without_a_word(tmp_path: Path) -> None:
    target = tmp_path / "site"
    found = built(target)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    first = (target / "index.html").read_text(encoding="utf-8")
    for page in target.rglob("*.html"):
        name = page.relative_to(target).as_posix()
        assert name.startswith("api/") or name == "index.html" or f'href="{name}"' in first, name
    reference = (target / "api" / "planner.html").read_text(encoding="utf-8")
    import planner

    for name in planner.__all__:
        assert f'id="{name}"' in reference, name


def test_a_page_that_is_not_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from docs import build_site

    (tmp_path / "new.md").write_text("# New\n")
    monkeypatch.setattr(build_site, "DOCS", tmp_path)
    with pytest.raises(build_site.BrokenSite, match=r"new\.md"):
        build_site.build(tmp_path / "site")
