"""The workhorse: its bound, its cost, the edge of its budget, and its known numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import Graph, simulate, store_all
from solvers import (
    Limits,
    Status,
    floor_bytes,
    lower_bound,
    minimum_budget,
    solve,
)
from tests.brute import brute
from tests.strategies import chain, graphs, random_graph, transformer, unet

EXACT = Limits(gap=0.0)
SHAPES = [chain(12), chain(40, size=7), transformer(4), unet(4)]


def _peak(graph: Graph) -> int:
    return simulate(graph, store_all(graph)).peak_bytes


def _cost(graph: Graph, budget_bytes: int, limits: Limits | None = None) -> float:
    schedule = solve(graph, budget_bytes, limits=limits).schedule
    return math.inf if schedule is None else simulate(graph, schedule).seconds


def _budgets(graph: Graph, least: int, count: int) -> list[int]:
    peak = _peak(graph)
    return sorted({least + (peak - least) * i // count for i in range(count + 1)})


@pytest.mark.parametrize("seed", range(60))
def test_bound_optimum_and_cost_are_in_order(seed: int) -> None:
    graph = random_graph(seed)
    for budget in range(floor_bytes(graph), _peak(graph)):
        best = brute(graph, budget)
        answer = solve(graph, budget, limits=EXACT)
        assert answer.bound_seconds <= best * (1 + 1e-9), (seed, budget)
        if answer.status is Status.INFEASIBLE:
            assert best == math.inf, (seed, budget)
        if answer.schedule is not None:
            trace = simulate(graph, answer.schedule)
            assert trace.peak_bytes <= budget
            assert trace.seconds >= best * (1 - 1e-9), (seed, budget)


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_more_budget_never_costs_more(graph: Graph) -> None:
    budgets = range(floor_bytes(graph), _peak(graph) + 1)
    costs = [_cost(graph, budget, EXACT) for budget in budgets]
    assert all(a >= b * (1 - 1e-5) for a, b in zip(costs, costs[1:], strict=False)), costs


@pytest.mark.parametrize("graph", SHAPES, ids=lambda g: g.name)
def test_least_budget_is_attained_and_auto_attains_it(graph: Graph) -> None:
    found = minimum_budget(graph)
    trace = simulate(graph, found.schedule)
    assert floor_bytes(graph) <= found.floor_bytes <= found.least_bytes == trace.peak_bytes
    answer = solve(graph, found.least_bytes, limits=Limits(seconds=5.0))
    assert answer.schedule is not None
    assert simulate(graph, answer.schedule).seconds <= trace.seconds
    assert solve(graph, found.floor_bytes - 1).status is Status.INFEASIBLE
