"""What a plan file may make use of, each with a version: a file names what it needs to be read.

Actions are known by ``graphs.schedule.ACTIONS``; engines and rewrites, which need torch, by the
rows here and, once they are imported, by what enters itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.graphs import ACTIONS, Schedule
from planner.plan.step_plan import StepPlan

TENSOR = "parallelism tensor"
"""Layers parted over ranks."""

STATES = "states host"
"""States of the optimizer that wait on the host."""

FEATURES: dict[str, int] = {
    "engine op_by_op": 1,
    "engine inductor": 1,
    "rewrite as_captured": 1,
    "rewrite loss_chunks": 1,
    "rewrite mlp_chunks": 1,
    TENSOR: 1,
    STATES: 1,
}
"""The version that this package knows of each."""


def register_feature(kind: str, name: str, version: int) -> None:
    """Enter what plan files may name.

    Args:
        kind: "engine" or "rewrite".
        name: what plans call it.
        version: rises when plans made with an older one can no longer be carried out as they are.

    Raises:
        ValueError: the name is taken by another version.
    """
    known = FEATURES.setdefault(f"{kind} {name}", version)
    if known != version:
        raise ValueError(f"the {kind} {name!r} is known with version {known}, not {version}")


def known_features() -> dict[str, int]:
    """Return the version of everything that a file may name."""
    return FEATURES | {f"action {name}": 1 for name in ACTIONS}


def features_of(plan: StepPlan, schedules: Iterable[Schedule] = ()) -> dict[str, int]:
    """Return what a plan makes use of, and the schedules of its units if it has any."""
    used = {step.action.name for s in (plan.schedule, *schedules) for step in s.steps}
    named = (f"engine {plan.engine}", f"rewrite {plan.rewrite.partition(' ')[0]}")
    states = () if plan.states is None else (STATES,)
    found = {n: FEATURES.get(n, 1) for n in (*named, *states)}
    return {f"action {name}": 1 for name in sorted(used)} | found
