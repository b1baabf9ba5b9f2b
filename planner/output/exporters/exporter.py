"""The seam of every format that a plan can be written in: one signature, one registry.

A format is a file of this folder that enters itself, and a line in the folder's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.errors import BadSpec
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan

AnyPlan = StepPlan | ShardedStepPlan


@dataclass(frozen=True)
class Exporter:
    """A format: which plans it can hold, and how one is written.

    ``write`` gets the plan, where to write, and where the plan itself is kept, if it is anywhere;
    it returns what the format cannot express or does otherwise, one sentence each. ``file_name`` is
    what such a file is usually called, if it has a name of its own.
    """

    name: str
    holds: tuple[type[AnyPlan], ...]
    write: Callable[[AnyPlan, Path, Path | None], tuple[str, ...]]
    file_name: str | None = None


EXPORTERS: dict[str, Exporter] = {}


def register_exporter(exporter: Exporter) -> Exporter:
    """Enter a format under its name; a name taken twice raises ``ValueError``."""
    if exporter.name in EXPORTERS:
        raise ValueError(f"an exporter named {exporter.name!r} is already registered")
    EXPORTERS[exporter.name] = exporter
    return exporter


def export(
    plan: AnyPlan,
    path: str | Path,
    format: str | None = None,
    *,
    plan_path: str | Path | None = None,
) -> tuple[str, ...]:
    """Write a plan in a named format.

    Args:
        plan: what to write.
        path: where to.
        format: a name of ``EXPORTERS``; by default the suffix of the path.
        plan_path: where the plan is kept, for a script that loads it; if it is nowhere yet, such a
            format saves it beside.

    Returns:
        What the format cannot express or does otherwise, one sentence each.

    Raises:
        BadSpec: an unknown format, or one that cannot hold such a plan; the message lists those
            that can.
    """
    target = Path(path)
    chosen = target.suffix.removeprefix(".") if format is None else format
    valid = sorted(name for name, e in EXPORTERS.items() if isinstance(plan, e.holds))
    if chosen in EXPORTERS and chosen not in valid:
        raise BadSpec(
            f"the format {chosen!r} starts several ranks, and this is a plan for one device; valid "
            f"formats: {', '.join(valid)}"
        )
    if chosen not in valid:
        raise BadSpec(f"unknown format {chosen!r}; valid formats: {', '.join(valid)}")
    kept = None if plan_path is None else Path(plan_path)
    return EXPORTERS[chosen].write(plan, target, kept)
