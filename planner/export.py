"""Write a plan in the format another reader understands.

Knows which formats there are. Knows nothing of what they contain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from graphs.files import write_atomically
from planner.page import write_page
from planner.plan import Plan
from planner.planfile import save
from planner.report import render
from planner.timeline import render_timeline_svg


def _write_text(plan: Plan, path: str | Path) -> None:
    write_atomically(path, render(plan))


def _write_svg(plan: Plan, path: str | Path) -> None:
    write_atomically(path, render_timeline_svg(plan))


FORMATS: dict[str, Callable[[Plan, str | Path], None]] = {
    "json": save,
    "html": write_page,
    "svg": _write_svg,
    "text": _write_text,
}


def export(plan: Plan, path: str | Path, format: str) -> None:
    """Write a plan in a named format.

    Raises:
        ValueError: an unknown format; the message lists the valid ones.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; valid formats: {', '.join(sorted(FORMATS))}")
    FORMATS[format](plan, path)
