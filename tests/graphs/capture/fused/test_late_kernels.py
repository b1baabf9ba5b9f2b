"""Kernels that are put off: the same ones run, in an order that holds no more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given

from planner.graphs import Graph, Phase, Schedule, plain_schedule, simulate
from planner.graphs.capture.fused.late_kernels import put_off
from planner.solvers import Limits, solve
from tests.strategies import graphs, transformer


def fused(graph: Graph, every: int) -> Graph:
    """Let one op of so many be a product, the others fused kernels, without workspace."""
    ops = (
        replace(op, target="mm" if i % every == 0 else "fused(x)", workspace_bytes=0)
        for i, op in enumerate(graph.ops)
    )
    return replace(graph, ops=tuple(ops))


def forward_runs(graph: Graph, schedule: Schedule) -> Counter[int]:
    """Count what runs before the first kernel of backward."""
    phases = (graph.ops[i].phase for i in schedule.order)
    turn = next((i for i, phase in enumerate(phases) if phase is not Phase.FORWARD), None)
    return Counter(schedule.order[:turn])


def check(graph: Graph, schedule: Schedule) -> None:
    late = Schedule(put_off(graph, schedule))
    assert Counter(late.steps) == Counter(schedule.steps)
    assert simulate(graph, late).peak_bytes <= simulate(graph, schedule).peak_bytes
    assert forward_runs(graph, late) == forward_runs(graph, schedule)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_schedule_that_repeats_kernels_holds_no_more(every: int) -> None:
    graph = fused(transformer(2), every)
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    found = solve(graph, int(0.7 * peak), method="auto", limits=Limits(seconds=2)).schedule
    assert found is not None
    assert len(found.order) > len(graph.ops)
    check(graph, found)


@given(graphs(max_ops=12, silent=True))
def test_any_step_holds_no_more(graph: Graph) -> None:
    graph = fused(graph, 3)
    check(graph, plain_schedule(graph))
