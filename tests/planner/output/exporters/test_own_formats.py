"""Plans in the formats that others read."""

from pathlib import Path

import pytest

from planner.plans import Plan


@pytest.mark.parametrize("format", ["json", "html", "svg", "txt"])
def test_exports(plan: Plan, tmp_path: Path, format: str) -> None:
    plan.export(tmp_path / "out", format)
    assert (tmp_path / "out").stat().st_size > 500


def test_unknown_export_lists_the_formats(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid formats: html, json, svg, txt"):
        plan.export(tmp_path / "out", "pdf")
    assert not list(tmp_path.iterdir())
