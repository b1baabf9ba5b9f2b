"""The curve: attained points, and an envelope that no schedule passes below at any budget."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import SOLVERS, Limits, floor_bytes, solve
from planner.solvers.baselines.pareto_marks import rivals
from planner.solvers.bounds.parametric import line_below, supporting_line
from planner.solvers.frontier import Frontier, frontier, spaced
from planner.solvers.model.master import one_cut
from planner.solvers.model.problem import flatten
from tests.brute import brute
from tests.strategies import chain, random_graph, transformer, unet

AMPLE = Limits(seconds=240)  # time ends nothing here, however busy the machine


def _every_budget(graph: Graph) -> range:
    return range(floor_bytes(graph) - 1, simulate(graph, plain_schedule(graph)).peak_bytes + 2)


@pytest.mark.parametrize("first_seed", range(2000, 2040, 20))
def test_the_envelope_against_brute_force_at_every_budget(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        graph = random_graph(seed, max_ops=7)
        found = frontier(graph, points=3, limits=AMPLE)
        for budget in _every_budget(graph):
            optimum, label = brute(graph, budget), f"seed {seed}, budget {budget}"
            assert found.bound_seconds(budget) <= optimum + 1e-6, label
            point = found.at(budget)
            assert point is None or point.seconds >= optimum - 1e-6, label
            assert point is not None or budget < found.points[0].budget_bytes, label


@pytest.mark.parametrize("seed", range(2100, 2120))
def test_any_multipliers_bound_every_budget(seed: int) -> None:
    graph = random_graph(seed, max_ops=7)
    problem, rng = flatten(graph), np.random.default_rng(seed)
    for cut in range(problem.n):
        program = one_cut(problem, floor_bytes(graph), cut)
        line = line_below(program, rng.normal(size=len(program.model.low)))
        for budget in _every_budget(graph):
            extra = brute(graph, budget) - graph.seconds
            assert line.at(budget) <= extra + 1e-6, f"cut {cut}, budget {budget}"


@pytest.mark.parametrize(("graph", "most"), [(unet(2), 1), (chain(6), 9)], ids=["unet", "chain"])
def test_the_envelope_against_the_exact_program_between_the_points(graph: Graph, most: int) -> None:
    found = frontier(graph, points=4, limits=AMPLE)
    for one, other in list(pairwise(found.points))[:most]:
        budget = (one.budget_bytes + other.budget_bytes) // 2
        best = solve(graph, budget, method="milp", limits=replace(AMPLE, gap=0.0))
        assert best.schedule is not None
        seconds = simulate(graph, best.schedule).seconds
        assert other.bound_seconds <= found.bound_seconds(budget) <= seconds + 1e-6


def test_a_line_touches_the_relaxation_where_it_is_drawn() -> None:
    graph = transformer(2)
    problem = flatten(graph)
    most = simulate(graph, plain_schedule(graph)).peak_bytes
    cut = next(i for i, op in enumerate(graph.ops) if op.phase.value == "backward")
    budgets = [most * k // 10 for k in (7, 8, 9)]
    lines = [supporting_line(problem, b, cut) for b in budgets]
    for line, budget in zip(lines, budgets, strict=True):
        assert line is not None
        envelope = max(other.at(budget) for other in lines if other is not None)
        assert line.at(budget) == pytest.approx(envelope)


@pytest.fixture(scope="module")
def layers() -> tuple[Graph, Frontier]:
    graph = transformer(1)
    return graph, frontier(graph, points=8, limits=AMPLE)


def test_more_budget_never_costs_more(layers: tuple[Graph, Frontier]) -> None:
    graph, found = layers
    for one, other in pairwise(found.points):
        assert one.budget_bytes < other.budget_bytes
        assert one.seconds >= other.seconds
        assert one.bound_seconds >= other.bound_seconds
    for point in found.points:
        trace = simulate(graph, point.schedule)
        assert (trace.peak_bytes, trace.seconds) == (point.peak_bytes, point.seconds)
        assert point.peak_bytes <= point.budget_bytes
        assert point.bound_seconds <= point.seconds
    assert found.points[-1].seconds == graph.seconds


def test_the_envelope_decreases_and_ends_at_the_plain_step(layers: tuple[Graph, Frontier]) -> None:
    graph, found = layers
    high = found.points[-1].budget_bytes
    budgets = [found.floor_bytes + (high - found.floor_bytes) * k // 50 for k in range(51)]
    bounds = [found.bound_seconds(b) for b in budgets]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > graph.seconds
    assert found.bound_seconds(10 * high) == graph.seconds
    assert found.bound_seconds(found.floor_bytes - 1) == math.inf
    assert found.at(found.points[0].budget_bytes - 1) is None


def test_no_heuristic_beats_a_point(layers: tuple[Graph, Frontier]) -> None:
    graph, found = layers
    others = rivals(graph, [found.points[3].budget_bytes], Limits(seconds=1))
    assert set(others) <= set(SOLVERS)
    assert len(others) >= 4
    for name, marks in others.items():
        assert list(marks) == sorted(marks)
        for one, other in pairwise(marks):
            assert one.seconds > other.seconds
        for point in found.points:
            fitting = [m.seconds for m in marks if m.peak_bytes <= point.budget_bytes]
            assert min(fitting, default=math.inf) >= point.seconds - 1e-9, name


def test_same_seed_same_curve(layers: tuple[Graph, Frontier]) -> None:
    graph, found = layers
    assert frontier(graph, points=8, limits=AMPLE) == found


def test_budgets_are_refused_or_made_distinct() -> None:
    with pytest.raises(ValueError, match="1 points make no curve"):
        frontier(chain(3), points=1)
    assert len(frontier(chain(2), points=50).points) <= 3
    assert spaced(3, 3, 2) == [3]
