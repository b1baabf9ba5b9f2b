"""The workhorse: its bound, its cost, the edge of its budget, and its known numbers."""

from __future__ import annotations

import functools
import math

import pytest

from planner.graphs import Graph, Op, Value, plain_schedule, simulate
from planner.solvers import (
    Limits,
    MinimumBudget,
    Status,
    floor_bytes,
    minimum_budget,
    solve,
)
from planner.solvers.exact.state_search import search_states
from planner.solvers.given_order import BASELINES
from planner.solvers.model.problem import flatten
from planner.solvers.search.incumbent import Search
from planner.solvers.search.polish import polish
from planner.solvers.search.time_cuts import run_cuts
from tests.strategies import chain, random_graph, transformer, unet

EXACT = Limits(gap=0.0)
SHAPES = [chain(12), chain(40, size=7), transformer(1), unet(4), transformer(2)]
EACH = [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.slow)]


def _peak(graph: Graph) -> int:
    return simulate(graph, plain_schedule(graph)).peak_bytes


@functools.cache
def _least(shape: int) -> MinimumBudget:
    return minimum_budget(SHAPES[shape])


def _cost(graph: Graph, budget_bytes: int) -> float:
    schedule = solve(graph, budget_bytes).schedule
    return math.inf if schedule is None else simulate(graph, schedule).seconds


def _budgets(graph: Graph, least: int, count: int) -> list[int]:
    peak = _peak(graph)
    return sorted({least + (peak - least) * i // count for i in range(count + 1)})


@pytest.mark.parametrize("first_seed", range(0, 100, 20))
def test_cuts_bound_the_optimum_and_no_order_beats_it(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        graph = random_graph(seed, max_ops=14)
        problem = flatten(graph)
        for budget in {floor_bytes(graph), (floor_bytes(graph) + _peak(graph)) // 2}:
            optimum, search = search_states(problem, budget), Search(problem, budget)
            assert optimum.finished
            run_cuts(search, EXACT)
            polish(search)
            assert search.bound <= optimum.bound * (1 + 1e-9) <= search.extra * (1 + 1e-9), seed


@pytest.mark.parametrize("shape", EACH, ids=lambda i: SHAPES[i].name)
def test_least_budget_is_attained_and_auto_attains_it(shape: int) -> None:
    graph, found = SHAPES[shape], _least(shape)
    trace = simulate(graph, found.schedule)
    assert floor_bytes(graph) <= found.floor_bytes <= found.least_bytes == trace.peak_bytes
    answer = solve(graph, found.least_bytes)
    assert answer.schedule is not None
    assert simulate(graph, answer.schedule).seconds <= trace.seconds
    assert solve(graph, found.floor_bytes - 1).status is Status.INFEASIBLE


def test_a_least_budget_that_time_cut_off_says_so() -> None:
    graph = transformer(2)
    assert minimum_budget(graph, Limits(seconds=0.0)).stopped
    assert not minimum_budget(graph).stopped


@pytest.mark.parametrize("shape", EACH, ids=lambda i: SHAPES[i].name)
def test_never_dearer_than_a_baseline_nor_feasible_later(shape: int) -> None:
    graph, least = SHAPES[shape], _least(shape).least_bytes
    for name in ("blocks", *BASELINES):
        assert solve(graph, least - 1, method=name).schedule is None, name
    for budget in _budgets(graph, least, 3):
        ours = _cost(graph, budget)
        for name in ("blocks", *BASELINES):
            schedule = solve(graph, budget, method=name).schedule
            if schedule is not None:
                theirs = simulate(graph, schedule).seconds
                assert ours <= theirs * (1 + 1e-9), (budget, name)


def test_transformer_is_solved_to_half_a_percent() -> None:
    graph = transformer(8, width=64, square=128)
    least = minimum_budget(graph).least_bytes
    for budget in _budgets(graph, least, 4)[1:]:
        answer = solve(graph, budget)
        assert answer.schedule is not None
        cost = simulate(graph, answer.schedule).seconds
        assert cost - answer.bound_seconds <= 5e-3 * graph.seconds, budget


def test_deep_transformer_is_solved_to_one_percent() -> None:
    graph = transformer(120)
    budget = (floor_bytes(graph) + _peak(graph)) // 2
    answer = solve(graph, budget)
    assert answer.schedule is not None
    cost = simulate(graph, answer.schedule).seconds
    assert cost - answer.bound_seconds <= 1e-2 * graph.seconds


def test_chain_at_its_least_budget_recomputes_from_the_start_each_time() -> None:
    graph = chain(6)  # 3 live at once leaves no room for a checkpoint: 1 + 2 + ... recomputed
    found = minimum_budget(graph)
    assert found.least_bytes == found.floor_bytes == floor_bytes(graph)
    assert simulate(graph, found.schedule).seconds == graph.seconds + sum(range(5))


@pytest.mark.parametrize("seed", range(5))
def test_same_input_same_schedule(seed: int) -> None:
    graph = random_graph(seed, max_ops=30)
    budget = (floor_bytes(graph) + _peak(graph)) // 2
    assert solve(graph, budget).schedule == solve(graph, budget).schedule


def test_what_cannot_run_twice_raises_the_floor() -> None:
    values = tuple(Value(name, size) for name, size in (("mask", 4), ("x", 5), ("y", 1)))
    once = Op("mask", "f", (), (0,), 1.0, recomputable=False)
    graph = Graph((once, Op("x", "f", (), (1,), 1.0), Op("y", "f", (0,), (2,), 1.0)), values)
    assert (floor_bytes(graph), minimum_budget(graph).floor_bytes) == (5, 9)
    assert solve(graph, 8).status is Status.INFEASIBLE
