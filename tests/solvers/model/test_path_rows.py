"""Rows along paths: no schedule violates one, and a value smeared over windows does."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.linear_program import minimize
from planner.solvers.model.master import solve_master
from planner.solvers.model.master_program import MasterProgram
from planner.solvers.model.path_rows import path_rows
from planner.solvers.model.problem import Problem, flatten
from planner.solvers.model.windows import windows
from tests.strategies import random_graph, transformer

NOTHING = frozenset[int]()


def _budget(graph: Graph, share: float) -> int:
    floor = floor_bytes(graph)
    return floor + int(share * (simulate(graph, plain_schedule(graph)).peak_bytes - floor))


def _program(problem: Problem, cuts: list[int]) -> MasterProgram:
    return MasterProgram(problem, windows(problem, cuts, NOTHING), NOTHING, NOTHING)


@pytest.mark.parametrize("first_seed", range(70_000, 70_120, 40))
def test_rows_of_any_point_leave_the_integer_optimum_as_it_is(first_seed: int) -> None:
    rows = 0
    for seed in range(first_seed, first_seed + 40):
        graph, rng = random_graph(seed, max_ops=10), random.Random(seed)
        problem = flatten(graph)
        cuts = sorted(rng.sample(range(problem.n), rng.randint(1, problem.n)))
        bursts = [(op, t) for t in cuts for op in range(t + 1) if rng.random() < 0.2]
        program, budget = _program(problem, cuts), _budget(graph, rng.random() / 2)
        if any(program.space(frame, budget) < 0 for frame in program.frames):
            continue
        model = program.model(budget, bursts)
        before = minimize(model).bound
        for _ in range(5):  # points that no relaxation led to: the proof asks for none
            x = np.random.default_rng(rng.randrange(2**32)).random(len(model.cost)) ** 3
            for row in path_rows(program, x, 1000):
                model.row(row.index, row.value, low=row.low)
                rows += 1
        assert minimize(model).bound == pytest.approx(before), seed
    assert rows > 200


@pytest.mark.parametrize("seed", range(71_000, 71_040))
def test_no_bound_is_above_the_optimum(seed: int) -> None:
    graph, rng = random_graph(seed, max_ops=10), random.Random(seed)
    problem, budget = flatten(graph), _budget(graph, rng.random() / 2)
    optimum, cuts = search_states(problem, budget), range(problem.n)
    assert optimum.finished
    found = solve_master(problem, budget, cuts, relax=True, path_rounds=30)
    assert found.bound <= optimum.bound * (1 + 1e-9) + 1e-9
    whole = solve_master(problem, budget, cuts, path_rounds=30)
    assert whole.bound <= optimum.bound * (1 + 1e-9) + 1e-9
    assert whole.bound == pytest.approx(solve_master(problem, budget, cuts).bound, rel=1e-5)


def test_what_is_smeared_over_windows_is_seen() -> None:
    graph = transformer(3)
    problem, budget = flatten(graph), _budget(graph, 0.15)
    cuts = range(problem.n // 2, problem.n, 4)
    plain = solve_master(problem, budget, cuts, relax=True).bound
    tight = solve_master(problem, budget, cuts, relax=True, path_rounds=30).bound
    assert plain * 1.02 < tight < math.inf
