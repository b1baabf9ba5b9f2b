"""Orders made from what is kept are valid whatever is kept, and recompute no more than they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.graphs import Graph, schedule_from_order, simulate
from planner.solvers.baselines.merge_runs import merge_runs
from planner.solvers.baselines.revolve import advances
from planner.solvers.model.order_from_kept import (
    order_from_kept,
    order_from_stages,
    turning_point,
    without_unread,
)
from tests.strategies import chain, graphs, transformer, unet


def _some_values(data: st.DataObject, graph: Graph) -> frozenset[int]:
    made = [v for v in range(len(graph.values)) if v not in graph.resident]
    return frozenset(v for v in made if data.draw(st.booleans()))


@given(graphs(), st.data())
@settings(max_examples=80, deadline=None)
def test_kept_values_are_not_remade_and_no_op_runs_more_than_twice(
    graph: Graph, data: st.DataObject
) -> None:
    kept = _some_values(data, graph)
    order = order_from_kept(graph, kept)
    simulate(graph, schedule_from_order(graph, order))
    turn = turning_point(graph)
    for index, op in enumerate(graph.ops):
        assert 1 <= order.count(index) <= (2 if index < turn and op.recomputable else 1)
        if set(op.outputs) <= kept:
            assert order.count(index) == 1


@given(graphs(), st.data())
@settings(max_examples=80, deadline=None)
def test_stages_keep_first_runs_in_order(graph: Graph, data: st.DataObject) -> None:
    made_before = [
        {v for op in graph.ops[:t] for v in op.outputs} for t in range(len(graph.ops) + 1)
    ]
    kept = [_some_values(data, graph) & before for before in made_before]
    order = order_from_stages(graph, kept)
    assert list(dict.fromkeys(order)) == list(range(len(graph.ops)))
    before = simulate(graph, schedule_from_order(graph, order))
    after = simulate(graph, schedule_from_order(graph, without_unread(graph, order)))
    assert after.seconds <= before.seconds
    assert after.peak_bytes <= before.peak_bytes


@given(graphs(), st.integers(1, 8), st.data())
@settings(max_examples=80, deadline=None)
def test_orders_of_a_contracted_graph_expand_to_valid_ones(
    graph: Graph, most_ops: int, data: st.DataObject
) -> None:
    small = merge_runs(graph, most_ops)
    assert [op for run in small.runs for op in run] == list(range(len(graph.ops)))
    order = order_from_kept(small.graph, _some_values(data, small.graph))
    trace = simulate(graph, schedule_from_order(graph, small.expand(order)))
    assert trace.seconds >= graph.seconds
    if all(op.recomputable for op in graph.ops):
        held = simulate(small.graph, schedule_from_order(small.graph, order)).peak_bytes
        assert trace.peak_bytes <= held


@pytest.mark.parametrize("most_ops", range(2, 30, 3))
@pytest.mark.parametrize("graph", [unet(4), chain(12)], ids=lambda g: g.name)
def test_a_contracted_graph_never_holds_less(graph: Graph, most_ops: int) -> None:
    small = merge_runs(graph, most_ops)
    for order in (range(len(small.runs)), order_from_kept(small.graph, frozenset())):
        held = simulate(small.graph, schedule_from_order(small.graph, order)).peak_bytes
        expanded = schedule_from_order(graph, small.expand(order))
        assert simulate(graph, expanded).peak_bytes <= held


def test_the_forward_pass_ends_where_the_backward_begins() -> None:
    graph = transformer(2)
    assert graph.ops[turning_point(graph)].name == "d head.loss"
    assert graph.ops[turning_point(graph) - 1].name == "head.loss"


def test_one_slot_costs_the_square_of_the_length() -> None:
    assert [advances(n, 1) for n in range(1, 8)] == [n * (n - 1) // 2 for n in range(1, 8)]
