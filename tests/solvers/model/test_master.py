"""The master problem: whatever the cuts and bursts, its optimum is at most the true one."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from planner.graphs import Graph, Op, Value, plain_schedule, simulate
from planner.solvers import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import solve_master
from planner.solvers.model.master_points import point_of
from planner.solvers.model.master_program import Burst, MasterProgram
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
        tight = solve_master(problem, budget, cuts, bursts=bursts, relax=True, path_rounds=9).bound
        some = rng.sample(bursts, rng.randint(0, len(bursts)))
        between = solve_master(problem, budget, cuts, bursts=some).bound
        assert plain <= bound * (1 + 1e-5) + 1e-9, seed
        assert relaxed * (1 - 1e-9) <= tight <= bound * (1 + 1e-5) + 1e-9, seed
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


def misses(
    graph: Graph, budget: int, order: list[int], cuts: list[int], bursts: list[Burst]
) -> list[str]:
    """Return what an order's point is not, as a point of the master that costs no more."""
    problem = flatten(graph)
    master = MasterProgram(problem, windows(problem, cuts, frozenset()), frozenset(), frozenset())
    model = master.model(budget, bursts)
    x = point_of(master, Positions(problem, order), len(model.cost))
    rows = np.repeat(np.arange(len(model.low)), np.diff(model.start))
    total = np.zeros(len(model.low))
    np.add.at(total, rows, np.array(model.value) * x[model.index])
    extra = problem.order_seconds(order) - graph.seconds
    said = {
        "above the low sides": (total >= np.array(model.low) - 1e-6).all(),
        "below the high sides": (total <= np.array(model.high) + 1e-6).all(),
        "within the columns": (x >= np.array(model.lower)).all() and (x <= model.upper).all(),
        "no dearer": np.dot(model.cost, x) * master.unit <= extra + 1e-6,
    }
    return [name for name, true in said.items() if not true]


@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_an_optimum_is_a_point_of_the_master(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        graph, rng = random_graph(seed, max_ops=9), random.Random(seed)
        low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
        budget = rng.randint(low, (low + high) // 2)
        order = search_states(flatten(graph), budget).order
        if order is not None:
            n = len(graph.ops)
            cuts = sorted(rng.sample(range(n), rng.randint(1, n)))
            bursts = [(op, t) for t in cuts for op in range(t + 1)]
            assert not misses(graph, budget, order, cuts, bursts), seed


def _line(*sizes: int, silent: int) -> Graph:
    """Return a chain whose last op but for some silent ones comes after those."""
    ops = [Op("0", "f", (), (0,), 1.0)]
    ops += [Op(f"{i}", "f", (i - 1,), (i,), 1.0) for i in range(1, len(sizes) - 1)]
    ops += [Op(f"silent {i}", "f", (), (), 1.0) for i in range(silent)]
    ops.append(Op("last", "f", (len(sizes) - 2,), (len(sizes) - 1,), 1.0))
    return Graph(tuple(ops), tuple(Value(f"{v}", size) for v, size in enumerate(sizes)))


def test_what_is_given_up_at_a_cut_stays_given_up() -> None:
    graph = _line(2, 1, 1, silent=2)
    assert not misses(graph, 3, [0, 1, 2, 3, 1, 4], [2, 3], [(1, 2)])


def test_what_is_given_up_for_what_is_given_up_need_not_be_made() -> None:
    graph = _line(5, 4, 1, 1, silent=4)
    order = [0, 1, 2, 3, 4, 5, 6, 1, 2, 7]
    assert not misses(graph, 9, order, [1, 2, 4, 5], [(1, 2), (1, 5), (2, 5)])


def test_a_bound_on_ops_far_shorter_than_the_longest_is_below_the_optimum() -> None:
    """A solver's tolerance of costs is absolute, in units of the longest op."""
    made = zip((1e-7, 3e-8, 2e-7, 3e-8), (3, 3, 3, 1), strict=True)
    ops = [Op(f"o{i}", "f", (), (i,), seconds) for i, (seconds, _) in enumerate(made)]
    ops += [Op("big", "f", (), (4,), 1.0)]
    ops += [Op(f"r{i}", "f", (i,), (5 + i,), 0.0) for i in range(4)]
    values = [Value(f"v{i}", size) for i, size in enumerate((3, 3, 3, 1, 2, 0, 0, 0, 0))]
    problem = flatten(Graph(tuple(ops), tuple(values)))
    best = search_states(problem, 9)
    assert 0 < best.bound < 1e-7
    assert solve_master(problem, 9, [4]).bound <= best.bound
