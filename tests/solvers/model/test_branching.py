"""Branching proves what no whole point goes below, however little the solver says."""

from __future__ import annotations

import itertools
import math
import random

import highspy
import numpy as np
import pytest

from planner.graphs import plain_schedule, simulate
from planner.solvers import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model import branching
from planner.solvers.model.branching import branched
from planner.solvers.model.linear_program import Model, Row
from planner.solvers.model.master import branch_master, solve_master
from planner.solvers.model.problem import flatten
from tests.strategies import random_graph


def _binary_model(draw: random.Random, columns: int = 7, rows: int = 6) -> Model:
    model = Model()
    for _ in range(columns):
        model.column(draw.uniform(0, 3), integer=True)
    for _ in range(rows):
        index = draw.sample(range(columns), draw.randint(2, 4))
        value = [draw.choice((1.0, 2.0, -1.0)) for _ in index]
        most = sum(v for v in value if v > 0)
        model.row(index, value, low=draw.uniform(0.0, most * draw.choice((0.6, 0.6, 1.05))))
    return model


def _least(model: Model) -> float:
    """Return the least cost of a whole point, by trying all."""
    best = math.inf
    for x in itertools.product((0.0, 1.0), repeat=len(model.cost)):
        sums = [
            sum(model.value[i] * x[model.index[i]] for i in range(begin, end))
            for begin, end in itertools.pairwise(model.start)
        ]
        if all(total >= low for total, low in zip(sums, model.low, strict=True)):
            best = min(best, sum(c * v for c, v in zip(model.cost, x, strict=True)))
    return best


def _fractions(x: np.ndarray) -> list[int]:
    return [c for c in range(len(x)) if 1e-6 < x[c] < 1 - 1e-6]


def _no_rows(_: np.ndarray) -> list[Row]:
    return []


@pytest.mark.parametrize("first_seed", range(0, 120, 40))
def test_it_proves_the_integer_optimum(first_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = 0
    monkeypatch.setattr(branching, "BRANCH_PATIENCE", 1000)
    for seed in range(first_seed, first_seed + 40):
        model = _binary_model(random.Random(seed))
        least, enough = _least(model), 100.0
        proved = branched(model, _no_rows, _fractions, enough=enough).bound
        impossible += least == math.inf
        assert proved <= min(least, enough), seed
        assert proved == pytest.approx(min(least, enough), abs=1e-6), seed
    assert impossible > 2  # proved by rays


def test_what_it_proves_is_below_whatever_the_solver_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = np.random.default_rng(0)

    class Wrong(highspy.Highs):
        """Says nonsense: of multipliers, and now and then that there is no point."""

        def getSolution(self) -> highspy.HighsSolution:
            found = super().getSolution()
            found.row_dual = noise.normal(size=len(found.row_dual)).tolist()
            return found

        def getDualRay(self) -> tuple[highspy.HighsStatus, bool, np.ndarray]:
            status, _, _ = super().getDualRay()
            return status, True, noise.normal(size=self.getNumRow())

        def getModelStatus(self) -> highspy.HighsModelStatus:
            status: highspy.HighsModelStatus = super().getModelStatus()
            return highspy.HighsModelStatus.kInfeasible if noise.random() < 0.3 else status

    monkeypatch.setattr("planner.solvers.model.linear_program.highspy.Highs", Wrong)
    for seed in range(60):
        model = _binary_model(random.Random(seed))
        proved = branched(model, _no_rows, _fractions, enough=100.0, work=10_000).bound
        assert proved <= _least(model), seed


@pytest.mark.parametrize(
    "first_seed",
    [80_000, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(80_060, 80_600, 60))],
)
def test_no_bound_is_above_the_optimum(first_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = 0
    monkeypatch.setattr(branching, "PATH_ROUNDS", 1)  # so that more is left for branching
    monkeypatch.setattr(branching, "BRANCH_PATIENCE", 1000)
    for seed in range(first_seed, first_seed + 60):
        graph, rng = random_graph(seed, max_ops=10), random.Random(seed)
        problem, least = flatten(graph), floor_bytes(graph)
        most = simulate(graph, plain_schedule(graph)).peak_bytes
        budget = rng.randint(least, most)
        cuts = sorted(rng.sample(range(problem.n), rng.randint(1, problem.n)))
        bursts = [(op, t) for t in cuts for op in range(t + 1) if rng.random() < 0.3]
        optimum = search_states(problem, budget).bound
        enough = 10 * graph.seconds
        proved = branch_master(problem, budget, cuts, bursts=bursts, enough=enough).bound
        relaxed = solve_master(problem, budget, cuts, bursts=bursts, relax=True).bound
        whole = solve_master(problem, budget, cuts, bursts=bursts).bound
        assert proved <= optimum * (1 + 1e-12), seed
        assert proved >= min(relaxed, enough) * (1 - 1e-6), seed
        assert proved == pytest.approx(min(whole, enough), rel=1e-5, abs=1e-6), seed
        raised += proved > relaxed * (1 + 1e-6)
    assert raised > 2


def test_the_effort_is_counted() -> None:
    graph = random_graph(80_003, max_ops=10)
    problem = flatten(graph)
    budget = (floor_bytes(graph) + simulate(graph, plain_schedule(graph)).peak_bytes) // 2
    cuts, enough = range(problem.n), 10 * graph.seconds
    found = [
        branch_master(problem, budget, cuts, enough=enough, work=work).bound
        for work in (0, 500, 500, 10_000_000)
    ]
    assert found == sorted(found)
    assert found[1] == found[2]
