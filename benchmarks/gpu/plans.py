"""The plans of the checks, and what torch's allocator should say of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

import planner
from benchmarks.gpu.rows import Row, row
from planner.graphs.hardware.reserve import reserve_parts


def half_way(
    model: nn.Module, inputs: dict[str, Tensor], share: float = 0.5, **options: Any
) -> planner.Plan:
    """Plan half way between what is resident and what the plain step holds.

    Args:
        model, inputs: of the step.
        share: the way; where nothing fits, half of what is left of it is added.
        options: what else ``planner.fit`` is told.
    """
    said: dict[str, Any] = {"inputs": inputs, "progress": "off", **options}
    plain: planner.Plan = planner.fit(model, "90%", **said)
    resident = plain.graph.resident_bytes
    while True:
        try:
            budget = int(resident + share * (plain.plain_peak_bytes - resident))
            found: planner.Plan = planner.fit(model, budget, **said)
        except planner.InfeasibleBudget:
            share = (1 + share) / 2
        else:
            return found


def outside_bytes(plan: planner.Plan) -> int:
    """Return the counted part of a device's reserve that torch's allocator knows nothing of."""
    parts = reserve_parts(plan.hardware) if plan.hardware else ()
    return sum(p.size_bytes or 0 for p in parts if p.counted and not p.allocated)


def allocated_bytes(plan: planner.Plan) -> int:
    """Return what torch's allocator should say a planned step holds at most."""
    held = plan.needs.allocated_bytes if plan.needs else plan.peak_bytes
    return held - outside_bytes(plan)


def held(check: str, case: str, measured: int, plan: planner.Plan) -> Row:
    """Compare what a planned step held at most with what its plan says."""
    expected = allocated_bytes(plan)
    return row(check, case, "bytes", measured, expected, "2%", abs(measured / expected - 1) < 0.02)


def reserved(check: str, case: str, measured: int, plan: planner.Plan) -> Iterator[Row]:
    """Compare what the allocator took for a planned step with its simulation, if there is one."""
    if plan.needs is not None:
        most = plan.needs.reserved_bytes - outside_bytes(plan)
        yield row(check, case, "reserved", measured, most, "+2%", measured <= 1.02 * most)
