"""Solvers against brute force on random graphs: bound <= optimum <= cost, and the MILP equal."""

from __future__ import annotations

import math

import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import SOLVERS, Answer, Limits, Status, floor_bytes, solve
from planner.solvers.exact.milp import solve_exactly
from tests.brute import brute
from tests.strategies import random_graph

SLOW = {"milp", "milp_cbc", "lp_rounding", "auto"}
"""Solvers that run an integer or linear program; they meet fewer graphs."""

ANY_ORDER = {"reorder"}
"""Solvers that may leave the order brute force keeps; ``test_reorder`` has their oracle."""

EXACTLY = Limits(seconds=30, gap=0.0)


def _budgets(graph: Graph) -> list[int]:
    """Return the floor, and half of the way to what store-all holds."""
    low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    return sorted({low, (low + high) // 2})


def _check(graph: Graph, budget: int, method: str, optimum: float) -> None:
    label = f"{graph.name}, budget {budget}, {method}"
    solution = solve(graph, budget, method=method, limits=Limits(seconds=5))
    assert solution.bound_seconds <= optimum + 1e-6, label
    if solution.status is Status.INFEASIBLE:
        assert math.isinf(optimum), label
    if solution.schedule is not None:
        seconds = simulate(graph, solution.schedule).seconds
        assert seconds >= optimum - 1e-6, label
        if solution.status is Status.OPTIMAL:
            assert seconds <= optimum * 1.01 + 1e-6, label


@pytest.mark.parametrize("first_seed", range(0, 500, 50))
def test_fast_solvers(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        graph = random_graph(seed)
        for budget in _budgets(graph):
            optimum = brute(graph, budget)
            for method in sorted(set(SOLVERS) - SLOW - ANY_ORDER):
                _check(graph, budget, method, optimum)


@pytest.mark.parametrize(("method", "count"), [("auto", 100), ("lp_rounding", 30)])
def test_slower_solvers(method: str, count: int) -> None:
    for seed in range(1000, 1000 + count):
        graph = random_graph(seed, max_ops=7)
        for budget in _budgets(graph):
            _check(graph, budget, method, brute(graph, budget))


def _seconds(graph: Graph, answer: Answer) -> float:
    return math.inf if answer.schedule is None else simulate(graph, answer.schedule).seconds


@pytest.mark.parametrize("seed", range(100, 130))
def test_the_exact_program_equals_brute_force(seed: int) -> None:
    graph = random_graph(seed)
    for budget in _budgets(graph):
        checkmate = solve_exactly(graph, budget, EXACTLY, passes=(1,))
        assert _seconds(graph, checkmate) == pytest.approx(brute(graph, budget, passes=1))
        assert checkmate.schedule is None or checkmate.status is Status.OPTIMAL
        widened, optimum = solve_exactly(graph, budget, EXACTLY), brute(graph, budget)
        assert _seconds(graph, widened) == pytest.approx(optimum)
        assert widened.bound_seconds <= optimum + 1e-6
        if widened.status is Status.INFEASIBLE:
            assert math.isinf(optimum)


@pytest.mark.parametrize("seed", range(8))
def test_another_back_end_finds_the_same_optimum(seed: int) -> None:
    graph = random_graph(seed)
    for budget in _budgets(graph):
        answer = solve_exactly(graph, budget, EXACTLY, solver="CBC")
        assert _seconds(graph, answer) == pytest.approx(brute(graph, budget))


def test_a_second_pass_finds_what_checkmates_class_misses() -> None:
    graph = random_graph(2033)
    assert math.isinf(brute(graph, 21, passes=1))
    assert solve_exactly(graph, 21, EXACTLY, passes=(1,)).status is Status.UNKNOWN
    assert _seconds(graph, solve_exactly(graph, 21, EXACTLY)) == brute(graph, 21) == 34.0


def test_unknown_back_ends_are_named() -> None:
    with pytest.raises(ValueError, match="unknown integer solver 'Gurobi'; valid ones: CBC, HiGHS"):
        solve_exactly(random_graph(2033), 21, EXACTLY, solver="Gurobi")
