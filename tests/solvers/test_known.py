"""Optima known by formula, and plans worked out by hand."""

from __future__ import annotations

from functools import cache

import pytest

from planner.graphs import schedule_from_order, simulate
from planner.solvers import Limits, solve
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.merge_runs import merge_runs
from planner.solvers.baselines.revolve import advances
from planner.solvers.model.order_from_kept import order_from_kept
from tests.brute import brute
from tests.strategies import chain, transformer

LONGEST = 14


@cache
def _least_advances(length: int, slots: int) -> float:
    """Return the optimum by the recursion that Griewank and Walther's formula solves."""
    if length == 1:
        return 0
    if slots == 0:
        return float("inf")
    splits = range(1, length)
    return min(
        m + _least_advances(m, slots) + _least_advances(length - m, slots - 1) for m in splits
    )


@pytest.mark.parametrize("length", range(1, LONGEST + 1))
def test_the_formula_of_griewank_and_walther(length: int) -> None:
    for slots in range(1, length + 1):
        assert advances(length, slots) == _least_advances(length, slots)


@pytest.mark.parametrize(
    ("length", "slots"), [(n, s) for n in range(2, LONGEST + 1) for s in range(1, n - 1)]
)
def test_revolve_is_optimal_on_a_uniform_chain(length: int, slots: int) -> None:
    graph = chain(length)
    budget = slots + 3  # the slots, the state in hand, and what one step reads or writes besides
    solution = solve(graph, budget, method="revolve")
    assert solution.schedule is not None
    trace = simulate(graph, solution.schedule)
    assert trace.peak_bytes == budget
    recomputed = trace.seconds - graph.seconds
    assert recomputed == advances(length, slots) + 1 - length
    if length <= 5:
        assert trace.seconds == brute(graph, budget)


def test_blocks_recompute_their_inside_only() -> None:
    graph = transformer(3)
    blocks = find_blocks(graph)
    assert [sorted({graph.ops[i].module[:3] for i in block}) for block in blocks] == [
        ["h.0"],
        ["h.1"],
        ["h.2"],
    ]
    solution = solve(graph, 10**9, method="blocks")
    assert solution.schedule is not None
    again = [i for i in set(solution.schedule.order) if solution.schedule.order.count(i) > 1]
    assert {graph.ops[i].module.partition(".")[0] for i in again} == {"h"}
    assert all(graph.ops[i].recomputable for i in again)
    assert all(solution.schedule.order.count(i) == 2 for i in again)


def test_greedy_takes_back_the_blocks_it_does_not_need() -> None:
    graph = transformer(6)
    full = solve(graph, 10**9, method="plain")
    assert full.schedule is not None
    budget = simulate(graph, full.schedule).peak_bytes - 1
    greedy, uniform = (
        solve(graph, budget, method=m).schedule for m in ("blocks_greedy", "blocks_uniform")
    )
    assert greedy is not None
    assert uniform is not None
    one_block = sum(graph.ops[i].seconds for i in find_blocks(graph)[0])
    assert 0 < simulate(graph, greedy).seconds - graph.seconds <= one_block
    assert simulate(graph, greedy).seconds <= simulate(graph, uniform).seconds


def test_a_contracted_graph_expands_to_the_same_step() -> None:
    graph = transformer(3)
    small = merge_runs(graph, 12)
    assert len(small.graph.ops) < len(graph.ops)
    assert small.graph.seconds == pytest.approx(graph.seconds)
    assert small.expand(range(len(small.runs))) == list(range(len(graph.ops)))
    order = small.expand(order_from_kept(small.graph, frozenset()))
    trace = simulate(graph, schedule_from_order(graph, order))
    assert graph.seconds < trace.seconds < 2 * graph.seconds
    assert all(order.count(i) == 1 for i, op in enumerate(graph.ops) if not op.recomputable)


def test_a_graph_too_large_for_the_exact_program_is_named() -> None:
    graph = transformer(20)
    solution = solve(graph, 2000, method="milp", limits=Limits(seconds=1))
    assert solution.schedule is None
    assert "too many for the exact program; use method='auto'" in solution.message
