"""What every schedule holds, told from a step without solving it."""

from __future__ import annotations

import pytest

from planner.graphs import Kind
from planner.plan.configuration import Configuration
from planner.sharding.pricing import plan_step, price_recipes
from planner.solvers import Limits
from planner.solvers.minimum_budget import proven_floor
from tests.planner.sharding.assembled import DDP, FSDP, ZERO1, step


@pytest.mark.parametrize("configuration", [DDP, ZERO1, FSDP], ids=str)
def test_no_plan_holds_less(configuration: Configuration) -> None:
    found = step(configuration)
    floor = found.floor_bytes()
    assert floor > found.graph.resident_bytes
    peaks = [planned.peak_bytes for planned in price_recipes(configuration, found)]
    assert floor <= min(peaks)
    for budget in (floor, (floor + min(peaks)) // 2, min(peaks)):
        planned = plan_step(configuration, found, budget, limits=Limits(seconds=2.0))
        assert planned is None or planned.peak_bytes >= floor
    assert plan_step(configuration, found, floor - 1, limits=Limits(seconds=2.0)) is None


def test_more_samples_hold_more() -> None:
    found = step(FSDP)
    floors = [found.floor_bytes(times) for times in (1, 2, 4, 1000)]
    assert floors == sorted(floors)
    assert floors[-1] > 2 * floors[0]


def test_what_units_hand_on_is_made_once() -> None:
    """No unit is run again for another: what entered the units is kept."""
    found = step(FSDP)
    once = [op for op in found.graph.ops if op.module.startswith("h.") and not op.recomputable]
    made = {v for op in once for v in op.outputs}
    kinds = {found.graph.values[v].kind for v in made}
    assert Kind.ACTIVATION in kinds
    assert found.floor_bytes() >= proven_floor(found.graph)
