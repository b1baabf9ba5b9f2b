"""The curve with a host: attained, never below the brute optimum, its bound never above."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from planner.graphs import simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers import Limits, minimum_budget
from planner.solvers import frontier_with_host as of_host
from planner.solvers.baselines.pareto_marks import rivals
from planner.solvers.bounds.with_host import may_take_with_host
from planner.solvers.frontier import Frontier, Point, frontier, offered, solved_at
from planner.solvers.frontier_with_host import frontier_with_host, refined_with_host
from planner.solvers.least_with_host import least_with_host
from planner.solvers.model.host_problem import HostProblem
from tests.brute_host import brute_host
from tests.solvers.test_offload import drawn
from tests.strategies import transformer, unet

LIMITS = Limits(seconds=1.0)
SEEDS = range(6)


def test_every_point_against_brute_force() -> None:
    for seed in SEEDS:
        problem, named = drawn(seed)
        graph, tier = problem.graph, problem.tier
        found = frontier_with_host(graph, tier, 4, LIMITS)
        for point in found.points:
            trace = simulate(graph, point.schedule, link_bytes_per_second=tier.rates)
            assert trace.peak_bytes == point.peak_bytes <= point.budget_bytes, named
            least = brute_host(graph, point.budget_bytes, tier)
            assert point.bound_seconds <= least + 1e-5 * graph.seconds, named
            assert point.seconds >= least - 1e-9, named
        assert brute_host(graph, found.floor_bytes - 1, tier) == math.inf, named


def test_the_quick_answer_of_the_bound_agrees_with_brute_force() -> None:
    for seed in SEEDS:
        problem, named = drawn(seed)
        least = brute_host(problem.graph, problem.budget_bytes, problem.tier)
        if least < math.inf:
            extra = least - problem.graph.seconds
            assert may_take_with_host(problem, extra + 1e-4 * problem.graph.seconds), named


def test_less_works_with_a_host_and_no_budget_costs_more() -> None:
    graph, tier = transformer(2), HostTier(1e9, 1e9)
    alone = frontier(graph, points=4, limits=LIMITS)
    found = frontier_with_host(graph, tier, 4, LIMITS)
    assert found.points[0].budget_bytes < alone.points[0].budget_bytes
    for point in alone.points:
        own = found.at(point.budget_bytes)
        assert own is not None
    seconds = [p.seconds for p in found.points]
    assert seconds == sorted(seconds, reverse=True)
    assert found.points[-1].seconds == graph.seconds
    middle = (found.points[0].budget_bytes + found.points[1].budget_bytes) // 2
    more = refined_with_host(graph, tier, found, [middle, 1], LIMITS)
    assert [p.budget_bytes for p in more.points].count(middle) == 1
    assert len(more.points) == len(found.points) + 1


SLOW, FAST = HostTier(1.0, 1.0), HostTier(1e9, 1e9)
"""Links over which next to nothing is worth moving, and everything."""


def falling(found: Frontier) -> None:
    """Require that no budget costs more, or is proved to cost more, than a smaller one."""
    for less, more in pairwise(found.points):
        assert less.seconds >= more.seconds
        assert less.bound_seconds >= more.bound_seconds


@pytest.mark.parametrize("seconds", [0.0, 0.3])
@pytest.mark.parametrize("tier", [SLOW, FAST])
def test_no_point_is_slower_than_recomputation_alone(
    seconds: float, tier: HostTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[Point] = []

    def watched(*said: Any, **more: Any) -> list[Point]:
        alone.extend(found := solved_at(*said, **more))
        return found

    monkeypatch.setattr(of_host, "solved_at", watched)
    graph = unet(4)
    found = frontier_with_host(graph, tier, 5, Limits(seconds=seconds))
    assert len(alone) >= 2
    between = [(a.budget_bytes + b.budget_bytes) // 2 for a, b in pairwise(found.points)]
    refined = refined_with_host(graph, tier, found, between, Limits(seconds=0.0))
    assert len(refined.points) > len(found.points)
    for curve in (found, refined):
        falling(curve)
        for other in alone:
            point = curve.at(other.budget_bytes)
            assert point is not None
            assert point.seconds <= other.seconds


@pytest.mark.parametrize("tier", [SLOW, FAST, None])
def test_no_point_is_slower_than_a_heuristic(tier: HostTier | None) -> None:
    graph, hurried = unet(4), Limits(seconds=0.0)
    found = (
        frontier(graph, 5, hurried) if tier is None else frontier_with_host(graph, tier, 5, hurried)
    )
    marks = [m for front in rivals(graph, [], host=tier).values() for m in front]
    schedules = [m.schedule for m in marks if m.schedule is not None]
    assert len(schedules) == len(marks) > 10
    least = found.points[0]
    weak = [
        replace(least, budget_bytes=p.budget_bytes, bound_seconds=p.bound_seconds)
        for p in found.points
    ]
    better = offered(graph, replace(found, points=tuple(weak)), schedules, tier)
    falling(better)
    assert better.points[-1].seconds < least.seconds
    for point in better.points:
        trace = simulate(graph, point.schedule, link_bytes_per_second=tier.rates if tier else {})
        assert (trace.peak_bytes, trace.seconds) == (point.peak_bytes, point.seconds)
        assert point.peak_bytes <= point.budget_bytes
        fitting = [m.seconds for m in marks if m.peak_bytes <= point.budget_bytes]
        assert point.seconds <= min(fitting, default=math.inf)


def test_the_least_budget_is_attained() -> None:
    graph, tier = transformer(2), HostTier(1e9, 1e9)
    known = minimum_budget(graph, LIMITS)
    least = least_with_host(graph, tier, known)
    trace = simulate(graph, least.schedule, link_bytes_per_second=tier.rates)
    assert trace.peak_bytes == least.least_bytes < known.least_bytes
    assert least.floor_bytes <= least.least_bytes
    none = least_with_host(graph, HostTier(1e9, 1e9, 1), known)
    assert none.schedule == known.schedule


def test_one_point_is_no_curve() -> None:
    problem, _ = drawn(0)
    with pytest.raises(ValueError, match="ask for 2 or more"):
        frontier_with_host(problem.graph, problem.tier, 1)
    assert not may_take_with_host(HostProblem(problem.graph, 1, problem.tier), 1e9)


@pytest.mark.parametrize("host", [False, True])
def test_curves_keep_their_seconds_on_a_large_graph(
    host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", time.process_time)  # whatever else runs here
    graph, limits = transformer(90), Limits(seconds=2.0)  # 2,300 ops
    start = time.process_time()
    if host:
        found = frontier_with_host(graph, HostTier(20.0, 20.0), 6, limits)
    else:
        found = frontier(graph, 6, limits)
    assert time.process_time() - start < 2 * limits.seconds  # some pieces of work more than that
    assert len(found.points) >= 2
