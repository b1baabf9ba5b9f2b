"""Masters near a plan: they fit, cost no more, never less than the optimum, and mostly find it."""

from __future__ import annotations

import pytest

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import Limits
from planner.solvers.api import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import solve_master
from planner.solvers.model.near_plans import NearPlans
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.model.order_from_kept import order_from_kept
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.incumbent import Search
from planner.solvers.search.master_neighbours import improve_near
from planner.solvers.search.time_cuts import CutRun
from tests.strategies import random_graph, transformer


def dear(search: Search, graph: Graph) -> None:
    """Begin with everything recomputed that may be."""
    search.order = order_from_kept(graph, frozenset())
    search.extra = search.problem.order_seconds(search.order) - search.base


def test_a_dear_plan_becomes_cheap_and_is_never_too_cheap() -> None:
    optimal = tried = 0
    for seed in range(150):
        graph = random_graph(seed, max_ops=14)
        problem, most = flatten(graph), simulate(graph, plain_schedule(graph)).peak_bytes - 1
        for budget in {(floor_bytes(graph) + most) // 2, most}:
            search = Search(problem, budget)
            dear(search, graph)
            assert search.order is not None
            if held_bytes(problem, search.order).max() > budget or search.extra == 0.0:
                continue
            before, optimum = search.extra, search_states(problem, budget)
            improve_near(CutRun(search, Limits(gap=0.0)), target=0.0, share=1.0, seed=0)
            assert held_bytes(problem, search.order).max() <= budget
            assert optimum.bound - 1e-9 <= search.extra <= before
            tried += 1
            optimal += search.extra <= optimum.bound + 1e-4 * search.base
    assert tried > 20
    assert optimal > 0.7 * tried


def test_with_everything_free_it_is_the_master() -> None:
    graph = transformer(1)
    problem = flatten(graph)
    search = Search(problem, simulate(graph, plain_schedule(graph)).peak_bytes * 8 // 10)
    dear(search, graph)
    assert search.order is not None
    cuts = [problem.n // 2, problem.n * 3 // 4]
    near = NearPlans(problem, search.budget, cuts, ())
    found = near.best(search.order, range(problem.n), work=10**9)
    whole = solve_master(problem, search.budget, cuts, work=10**9)
    assert found.closed
    assert found.plan is not None
    assert whole.plan is not None
    costs = [problem.order_seconds(order_from_plan(problem, p)) for p in (found.plan, whole.plan)]
    assert costs[0] == pytest.approx(costs[1])
