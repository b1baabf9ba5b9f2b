"""Plans from blocks: they fit, cost no less than is proved, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
from planner.graphs import Graph, read_graph, schedule_from_order, simulate
from planner.solvers import Limits
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.model.problem import flatten
from planner.solvers.search.block_plans import plan_blocks
from planner.solvers.search.incumbent import Search
from tests.strategies import chain, transformer

GPT2 = read_graph(Path(benchmarks.__file__).parent / "instances" / "gpt2_2_layers.json")


def planned(graph: Graph, budget: int) -> Search:
    search = Search(flatten(graph), budget)
    plan_blocks(search, graph, Limits())
    return search


@pytest.mark.parametrize(
    ("graph", "budgets"),
    [(transformer(4), (400, 600)), (GPT2, (7_000_000, 8_500_000))],
    ids=["transformer", "gpt2"],
)
def test_plans_fit_cost_no_less_than_is_proved_and_are_always_the_same(
    graph: Graph, budgets: tuple[int, ...]
) -> None:
    for budget in budgets:
        search = planned(graph, budget)
        assert search.order is not None
        trace = simulate(graph, schedule_from_order(graph, search.order))
        assert trace.peak_bytes <= budget
        assert trace.seconds == pytest.approx(search.base + search.extra)
        assert list(dict.fromkeys(search.order)) == list(range(search.problem.n))
        assert trace.seconds >= quick_bound(graph, budget) * (1 - 1e-9)
        assert planned(graph, budget).order == search.order


def test_a_graph_without_blocks_is_left_alone() -> None:
    assert planned(chain(6), 4).order is None


def test_a_better_plan_is_kept() -> None:
    graph = transformer(4)
    search = Search(flatten(graph), 600)
    search.extra, search.order = 0.0, [0]
    plan_blocks(search, graph, Limits())
    assert search.order == [0]
