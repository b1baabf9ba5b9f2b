"""Schedules made to fit a little less: within the budget, with a bound that none passes."""

from __future__ import annotations

import math

import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import Limits, Status, solve
from planner.solvers.tightened import tightened
from tests.brute import brute
from tests.strategies import random_graph, transformer, unet

LIMITS = Limits(seconds=5, gap=0.02)


@pytest.mark.parametrize("first_seed", range(2000, 2060, 20))
def test_no_bound_is_above_the_least_and_what_is_close_is_said_to_be(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        graph = random_graph(seed, max_ops=7)
        plain = plain_schedule(graph)
        budget = int(0.8 * simulate(graph, plain).peak_bytes)
        least, found = brute(graph, budget), tightened(graph, [plain], budget, LIMITS)
        assert found.bound_seconds <= least + 1e-6
        if found.status is Status.INFEASIBLE:
            assert math.isinf(least)
        if found.schedule is not None:
            trace = simulate(graph, found.schedule)
            assert trace.peak_bytes <= budget
            close = trace.seconds - found.bound_seconds <= LIMITS.gap * graph.seconds + 1e-9
            assert (found.status is Status.OPTIMAL) == close


@pytest.mark.parametrize("graph", [transformer(3), transformer(6), unet(4)])
def test_what_was_best_for_a_little_more_is_hardly_worse_than_what_is_found_anew(
    graph: Graph,
) -> None:
    plain = simulate(graph, plain_schedule(graph)).peak_bytes
    larger = solve(graph, int(0.8 * plain), limits=Limits(seconds=5)).schedule
    assert larger is not None
    budget = int(0.99 * simulate(graph, larger).peak_bytes)
    found = tightened(graph, [larger], budget, LIMITS).schedule
    anew = solve(graph, budget, limits=Limits(seconds=5)).schedule
    assert found is not None
    assert anew is not None
    more = simulate(graph, found).seconds - simulate(graph, anew).seconds
    assert more <= 0.02 * graph.seconds
