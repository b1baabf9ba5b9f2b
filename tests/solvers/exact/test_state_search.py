"""The exact search against brute force: the optimum, and infeasible exactly where brute says so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import (
    Limits,
    Solution,
    Status,
    floor_bytes,
    lower_bound,
    minimum_budget,
    solve,
)
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.problem import flatten
from planner.solvers.tuning import TINY_OPS
from tests.brute import brute
from tests.strategies import chain, graphs, random_graph, unet

SEEDS = range(500)
SLICES = range(0, len(SEEDS), 50)


def _seconds(solution: Solution, graph: Graph) -> float:
    return math.inf if solution.schedule is None else simulate(graph, solution.schedule).seconds


def _budgets(graph: Graph, least: int) -> list[int]:
    low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    return sorted({low, max(low, least - 1), least, (least + high) // 2, high})


@pytest.mark.parametrize("first_seed", SLICES)
def test_auto_is_the_optimum_and_the_least_budget_the_edge(first_seed: int) -> None:
    for graph in map(random_graph, SEEDS[first_seed : first_seed + 50]):
        found, dearer = minimum_budget(graph), math.inf
        assert found.least_bytes == found.floor_bytes, graph.name
        for budget in _budgets(graph, found.least_bytes):
            optimum, solution = brute(graph, budget), solve(graph, budget)
            label = f"{graph.name}, budget {budget}"
            assert solution.bound_seconds == _seconds(solution, graph) == optimum, label
            assert (solution.status is Status.INFEASIBLE) == math.isinf(optimum), label
            assert math.isinf(optimum) == (budget < found.least_bytes), label
            assert lower_bound(graph, budget) == optimum <= dearer, label
            dearer = optimum


@given(graphs(max_ops=10))
@settings(max_examples=60, deadline=None)
def test_more_budget_never_costs_more(graph: Graph) -> None:
    budgets = range(floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes + 1)
    costs = [_seconds(solve(graph, budget), graph) for budget in budgets]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == graph.seconds


@pytest.mark.parametrize("graph", [chain(9), unet(2)], ids=lambda g: g.name)
def test_more_states_than_allowed_leave_a_bound(graph: Graph) -> None:
    assert len(graph.ops) > TINY_OPS / 2
    problem, budget = flatten(graph), minimum_budget(graph).least_bytes
    whole = search_states(problem, budget)
    assert whole.finished
    assert whole.order is not None
    bounds = [search_states(problem, budget, states=states).bound for states in (1, 10, 50)]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= whole.bound == problem.order_seconds(whole.order) - graph.seconds


def test_a_search_that_gives_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_states, "__kwdefaults__", {"states": 3})
    graph = chain(8)
    solution = solve(graph, 4, method="exact", limits=Limits(gap=0.0))
    assert solution.status is Status.UNKNOWN
    assert "gave up after" in solution.message
