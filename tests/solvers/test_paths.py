"""Every path of the workhorse against brute force, on graphs so small that it would take none.

Where a graph is tiny, small, large or very large is moved down, and every means is worth its while.
"""

from __future__ import annotations

import math
import random

import pytest

from planner.graphs import simulate
from planner.solvers import Limits, Status, floor_bytes, given_order
from planner.solvers.exact.state_search import search_states
from planner.solvers.given_order import in_given_order, lower_bound
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search import relaxed_masters, time_cuts
from tests.strategies import random_graph

PATHS = {
    "small": (0, 500, 2000),
    "large": (0, 0, 2000),
    "bounds apart": (0, 0, 2000),
    "very large": (0, 0, 0),
}
"""For each path up to how many ops a graph is tiny, not large, and not very large."""

ALWAYS = ("WORTH_INTEGERS_GAP", "WORTH_BASELINES_GAP", "WORTH_SWEEPS_GAP")


@pytest.mark.parametrize("first_seed", range(40_000, 40_180, 60))
@pytest.mark.parametrize("path", PATHS)
def test_no_path_is_wrong(path: str, first_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ops in zip(("TINY_OPS", "LARGE_OPS", "INTEGER_OPS"), PATHS[path], strict=True):
        monkeypatch.setattr(given_order, name, ops)
    monkeypatch.setattr(time_cuts, "LARGE_OPS", PATHS[path][1])
    monkeypatch.setattr(relaxed_masters, "SHARED_ABOVE_OPS", PATHS[path][2])
    for name in ALWAYS:
        monkeypatch.setattr(given_order, name, 0.0)
    monkeypatch.setattr(given_order, "WORTH_WALKING_GAP", 0.0 if path == "bounds apart" else 9.0)
    for seed in range(first_seed, first_seed + 60):
        graph = random_graph(seed, max_ops=10)
        problem, least = flatten(graph), floor_bytes(graph)
        most = int(held_bytes(problem, range(problem.n)).max())
        budget = random.Random(seed).randint(least, most)
        optimum = graph.seconds + search_states(problem, budget).bound
        answer = in_given_order(graph, budget, Limits(gap=0.0))
        assert answer.bound_seconds <= optimum * (1 + 1e-9) + 1e-9, seed
        assert lower_bound(graph, budget) <= optimum * (1 + 1e-9) + 1e-9, seed
        if answer.schedule is None:
            assert answer.status is not Status.INFEASIBLE or math.isinf(optimum), seed
            continue
        trace = simulate(graph, answer.schedule)
        assert trace.peak_bytes <= budget, seed
        assert trace.seconds >= optimum - 1e-9, seed
        if answer.status is Status.OPTIMAL:
            assert trace.seconds <= optimum * (1 + 1e-5) + 1e-9, seed
