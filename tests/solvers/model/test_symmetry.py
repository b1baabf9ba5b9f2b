"""Aggregates bound from below, whatever the classes; equal layers lose nothing by sharing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import Limits, floor_bytes, solve
from planner.solvers.given_order import BASELINES
from planner.solvers.model.linear_program import Model, minimize
from planner.solvers.model.master import solve_master
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.model.symmetry import aggregate, alike
from planner.solvers.search.incumbent import Search
from planner.solvers.search.relaxed_masters import run_relaxed
from tests.strategies import random_graph, transformer


def _random_model(rng: random.Random) -> Model:
    """Return a feasible model of the master's shape: covers, chains and one knapsack."""
    model = Model()
    count = rng.randint(2, 8)
    columns = [model.column(float(rng.randint(0, 4))) for _ in range(count)]
    for _ in range(rng.randint(1, 10)):
        chosen = rng.sample(columns, rng.randint(1, min(3, count)))
        if rng.random() < 0.5 or len(chosen) == 1:
            model.row(chosen, [1.0] * len(chosen), low=1.0)
        else:
            model.row(chosen, [1.0] * (len(chosen) - 1) + [-1.0], low=0.0)
    weights = [float(rng.randint(1, 3)) for _ in columns]
    model.row(columns, weights, high=sum(weights) * rng.uniform(0.6, 1.0))
    return model


@pytest.mark.parametrize("seed", range(200))
def test_any_aggregate_is_a_relaxation(seed: int) -> None:
    rng = random.Random(seed)
    model = _random_model(rng)
    names = [rng.randint(0, 3) for _ in model.cost]
    classes = np.unique(names, return_inverse=True)[1]
    whole, part = minimize(model, relax=True), minimize(aggregate(model, classes), relax=True)
    assert part.bound <= whole.bound + 1e-7


def _bounds(graph: Graph, fraction: float, cuts: list[int]) -> tuple[float, float]:
    floor, peak = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    problem, budget = flatten(graph), floor + int(fraction * (peak - floor))
    cuts = sorted({*cuts, int(held_bytes(problem, range(problem.n)).argmax())})
    apart, shared = (
        solve_master(problem, budget, cuts, relax=True, shared=s).bound for s in (False, True)
    )
    return apart, shared


@pytest.mark.parametrize("seed", range(30))
def test_shared_columns_never_raise_the_bound(seed: int) -> None:
    graph = random_graph(seed, max_ops=30)
    cuts = random.Random(seed).sample(range(1, len(graph.ops)), min(3, len(graph.ops) - 1))
    apart, shared = _bounds(graph, 0.5, cuts)
    assert shared <= apart * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_equal_layers_lose_little_by_sharing(fraction: float) -> None:
    graph = transformer(60)
    apart, shared = _bounds(graph, fraction, [])
    assert apart > 0
    assert shared <= apart * (1 + 1e-6)
    assert apart - shared <= 2e-3 * graph.seconds


def test_more_layers_are_not_more_kinds() -> None:
    kinds = [len(set(alike(flatten(g), [0] * len(g.ops)))) for g in map(transformer, (40, 80))]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("fraction", [0.5])
def test_deep_stack_is_planned_to_half_a_point(fraction: float) -> None:
    graph = transformer(70)
    floor, peak = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    search = Search(flatten(graph), floor + int(fraction * (peak - floor)))
    run_relaxed(search, target=1e-3, enough=1e-3, deadline=float("inf"))
    assert 0 < search.bound <= search.extra <= search.bound + 5e-3 * graph.seconds


def test_a_stack_is_never_dearer_than_a_baseline_nor_with_more_budget() -> None:
    graph = transformer(21)
    floor, peak = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    costs = []
    for fraction in (0.5, 0.85):
        budget = floor + int(fraction * (peak - floor))
        schedule = solve(graph, budget).schedule
        assert schedule is not None
        costs.append(simulate(graph, schedule).seconds)
        for name in BASELINES:
            theirs = solve(graph, budget, method=name).schedule
            if theirs is not None:
                assert costs[-1] <= simulate(graph, theirs).seconds * (1 + 1e-9), name
    assert costs == sorted(costs, reverse=True)


def test_no_time_still_gives_a_plan_and_a_bound_below_it() -> None:
    graph = transformer(70)
    budget = (floor_bytes(graph) + simulate(graph, plain_schedule(graph)).peak_bytes) // 2
    hurried = solve(graph, budget, limits=Limits(seconds=0.0))
    assert hurried.schedule is not None
    assert graph.seconds <= hurried.bound_seconds <= simulate(graph, hurried.schedule).seconds
