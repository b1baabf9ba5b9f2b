"""Stretches solved alone: the whole still fits, costs no more, and never beats the optimum."""

from __future__ import annotations

import pytest

from planner.graphs import schedule_from_order, simulate
from planner.solvers import Limits
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search import stretches
from planner.solvers.search.evict import fit
from planner.solvers.search.incumbent import Search
from planner.solvers.search.stretches import improve_stretches
from tests.solvers.instances import INSTANCES, budget_of
from tests.solvers.model.test_stretch import fitting


def started(search: Search, order: list[int]) -> float:
    """Begin a search with an order that is not pruned; return its extra seconds."""
    search.order = order
    search.extra = search.problem.order_seconds(order) - search.base
    return search.extra


@pytest.mark.parametrize("first_seed", range(0, 480, 120))
def test_improving_keeps_the_budget_and_the_optimum(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "STRETCH_RUNS", (4, 8))
    for seed, problem, budget, order in fitting(first_seed):
        search = Search(problem, budget)
        before = started(search, order)
        improve_stretches(search, Limits())
        assert search.order is not None
        assert held_bytes(problem, search.order).max() <= budget, seed
        assert search.extra <= before, seed
        assert list(dict.fromkeys(search.order)) == list(range(problem.n)), seed
        optimum = search_states(problem, budget)
        assert optimum.finished
        assert search.extra >= optimum.bound * (1 - 1e-9) - 1e-9, seed


@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_what_is_evicted_badly_gets_better_and_always_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "STRETCH_RUNS", (12, 30))
    graph = INSTANCES[name]
    problem, budget = flatten(graph), budget_of(graph, 0.4)
    order = fit(problem, range(problem.n), budget, patience=1.0)
    assert order is not None
    found = []
    for _ in range(2):
        search = Search(problem, budget)
        before = started(search, order)
        improve_stretches(search, Limits())
        assert search.order is not None
        trace = simulate(graph, schedule_from_order(graph, search.order))
        assert trace.peak_bytes <= budget
        assert trace.seconds == pytest.approx(search.base + search.extra)
        assert search.extra < before
        found.append(search.order)
    assert found[0] == found[1]
