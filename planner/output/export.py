"""Write a plan in the format another reader understands.

Knows which formats there are. Knows nothing of what they contain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.errors import BadSpec
from planner.graphs.files import write_atomically
from planner.output.page import write_page
from planner.output.plan_files import save
from planner.output.plan_text import render
from planner.output.timeline import render_timeline_svg
from planner.plan.single import Plan


def _write_text(plan: Plan, path: str | Path) -> None:
    write_atomically(path, render(plan))


def _write_svg(plan: Plan, path: str | Path) -> None:
    write_atomically(path, render_timeline_svg(plan))


FORMATS: dict[str, Callable[[Plan, str | Path], None]] = {
    "json": save,
    "html": write_page,
    "svg": _write_svg,
    "txt": _write_text,
}


def export(plan: Plan, path: str | Path, format: str | None = None) -> None:
    """Write a plan in a named format, by default the one of the path's suffix.

    Raises:
        BadSpec: an unknown format; the message lists the valid ones.
    """
    chosen = Path(path).suffix.removeprefix(".") if format is None else format
    if chosen not in FORMATS:
        raise BadSpec(f"unknown format {chosen!r}; valid formats: {', '.join(sorted(FORMATS))}")
    FORMATS[chosen](plan, path)
