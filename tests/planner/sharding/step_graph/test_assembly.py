"""The graph of a whole sharded step, and what torch can run of it."""

from __future__ import annotations

import math

import pytest

from planner.graphs import plain_schedule, simulate
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.solvers import minimum_budget, solve
from tests.planner.sharding.assembled import DDP, FSDP, ZERO1, step, unit_parameters


@pytest.mark.parametrize("configuration", [DDP, ZERO1, FSDP], ids=str)
def test_a_plain_order_is_realized_as_it_is_but_for_second_gathers(
    configuration: Configuration,
) -> None:
    found = step(configuration)
    plain = simulate(found.graph, plain_schedule(found.graph))
    realized = found.realize(range(len(found.graph.ops)))
    trace = simulate(found.graph, realized.schedule)
    assert all(unit.schedule.is_plain for unit in realized.units)
    assert trace.seconds == pytest.approx(plain.seconds)
    assert trace.peak_bytes == plain.peak_bytes
    assert all(u.keep_gathered == (configuration is FSDP) for u in realized.units)


def test_a_solvers_order_becomes_one_schedule_a_unit() -> None:
    found = step(FSDP)
    least = minimum_budget(found.graph).least_bytes
    most = simulate(found.graph, plain_schedule(found.graph)).peak_bytes
    solution = solve(found.graph, (least + most) // 2)
    assert solution.schedule is not None
    realized = found.realize(solution.schedule.order)
    for unit in realized.units:  # each schedule runs on the unit's own graph
        simulate(found.kinds[unit.kind], unit.schedule)
    again = found.realize_units(realized.units)
    assert again == realized
    trace = simulate(found.graph, realized.schedule)
    assert trace.seconds == pytest.approx(simulate(found.graph, solution.schedule).seconds)
    assert found.realize(realized.schedule.order).units == realized.units


def test_gathers_run_one_unit_ahead_in_backward() -> None:
    found = step(FSDP)
    units = found.realize(range(len(found.graph.ops))).units
    again = [type(u)(u.path, u.kind, u.schedule, keep_gathered=False) for u in units]
    schedule = found.realize_units(again).schedule
    names = [found.graph.ops[i].name for i in schedule.order]
    turn = names.index("tangents_1")
    late = [n for n in names[turn - 1 :] if n.startswith(("all_gather", "copy_out", "reshard"))]
    assert late == [
        *("all_gather.h.2", "copy_out.h.2", "all_gather.h.1", "reshard.h.2"),
        *("copy_out.h.1", "all_gather.h.0", "reshard.h.1", "copy_out.h.0", "reshard.h.0"),
        "reshard.root",
    ]


def test_one_rank_that_has_all_of_a_group_copies_it_and_sends_nothing() -> None:
    """Its layers are parted over two: what they send themselves is in the units."""
    alone = step(Configuration(Strategy.FSDP, 1, micro_batch=2, tensor_ranks=2)).graph
    gathers = [op for op in alone.ops if op.target in ("all_gather", "reduce_scatter")]
    assert gathers
    assert all(op.workspace_bytes == 0 for op in gathers)
    held = {v.name: v.size_bytes for v in alone.values}
    assert held["flat.h.0"] == held["late releases of gloo"] == 0
    assert held["gathered.h.0"] == sum(p.itemsize * math.prod(p.shape) for p in unit_parameters())
