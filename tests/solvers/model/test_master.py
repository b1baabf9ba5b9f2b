"""The master problem: whatever the cuts and bursts, its optimum is at most the true one."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from planner.graphs import plain_schedule, simulate
from planner.solvers import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import _Master, solve_master
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import flatten
from planner.solvers.model.windows import windows
from tests.strategies import random_graph


@pytest.mark.parametrize("first_seed", range(0, 500, 50))
def test_cuts_and_bursts_never_cut_off_the_optimum(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        graph, rng = random_graph(seed, max_ops=9), random.Random(seed)
        problem = flatten(graph)
        low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
        budget = rng.randint(low, (low + high) // 2)
        cuts = sorted(rng.sample(range(problem.n), rng.randint(1, problem.n)))
        optimum = search_states(problem, budget)
        assert optimum.finished
        bursts = [(op, t) for t in cuts for op in range(t + 1)]
        plain = solve_master(problem, budget, cuts).bound
        bound = solve_master(problem, budget, cuts, bursts=bursts).bound
        relaxed = solve_master(problem, budget, cuts, bursts=bursts, relax=True).bound
        some = rng.sample(bursts, rng.randint(0, len(bursts)))
        between = solve_master(problem, budget, cuts, bursts=some).bound
        assert plain <= bound * (1 + 1e-5) + 1e-9, seed
        assert relaxed <= bound * (1 + 1e-5) + 1e-9, seed
        assert between <= optimum.bound * (1 + 1e-6) + 1e-9 or math.isinf(optimum.bound), seed
        assert bound <= optimum.bound * (1 + 1e-9) + 1e-9 or math.isinf(optimum.bound), seed


def test_bursts_see_what_cuts_do_not() -> None:
    tighter = 0
    for seed in range(100):
        graph = random_graph(seed, max_ops=9)
        problem, budget = flatten(graph), floor_bytes(graph)
        cuts = range(problem.n)
        bursts = [(op, t) for t in cuts for op in range(t + 1)]
        plain, bound = (
            solve_master(problem, budget, cuts, bursts=found).bound for found in ((), bursts)
        )
        tighter += bound > plain
    assert tighter >= 3


@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_an_order_that_fits_is_a_point_of_the_master(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        graph, rng = random_graph(seed, max_ops=9), random.Random(seed)
        problem = flatten(graph)
        low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
        budget = rng.randint(low, (low + high) // 2)
        optimum = search_states(problem, budget)
        if optimum.order is None:
            continue
        cuts = sorted(rng.sample(range(problem.n), rng.randint(1, problem.n)))
        master = _Master(problem, windows(problem, cuts, frozenset()), frozenset(), frozenset())
        model = master.model(budget, [(op, t) for t in cuts for op in range(t + 1)])
        x = master.point(Positions(problem, optimum.order), len(model.cost))
        rows = np.repeat(np.arange(len(model.low)), np.diff(model.start))
        total = np.zeros(len(model.low))
        np.add.at(total, rows, np.array(model.value) * x[model.index])
        assert (total >= np.array(model.low) - 1e-6).all(), seed
        assert (total <= np.array(model.high) + 1e-6).all(), seed
        assert (x >= np.array(model.lower)).all(), seed
        assert np.dot(model.cost, x) * master.unit <= optimum.bound + 1e-6, seed
