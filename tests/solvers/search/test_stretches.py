"""Stretches solved alone: the whole still fits, costs no more, and never beats the optimum."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from planner.graphs import schedule_from_order, simulate
from planner.solvers import floor_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import solve_master
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.model.stretch import stretch
from planner.solvers.search import stretches
from planner.solvers.search.evict import fit
from planner.solvers.search.incumbent import Search
from planner.solvers.search.stretches import boundaries, improve_stretches
from tests.solvers.instances import INSTANCES, budget_of
from tests.strategies import random_graph


def fitting(first_seed: int) -> Iterator[tuple[int, Problem, int, list[int]]]:
    """Yield random problems with budgets, and orders that fit them and may be far from best."""
    for seed in range(first_seed, first_seed + 120):
        graph, rng = random_graph(seed, max_ops=10), random.Random(seed)
        problem, low = flatten(graph), floor_bytes(graph)
        high = int(held_bytes(problem, range(problem.n)).max(initial=low))
        budget = rng.randint(low, max(low, (low + high) // 2))
        order = fit(problem, range(problem.n), budget, patience=rng.choice((0.0, 1.0)))
        if order is not None and problem.n > 2:
            yield seed, problem, budget, order


@pytest.mark.parametrize("first_seed", range(0, 600, 120))
def test_improving_keeps_the_budget_and_the_optimum(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "STRETCH_RUNS", (4, 8))
    for seed, problem, budget, order in fitting(first_seed):
        search = Search(problem, budget)
        search.order = order
        search.extra = before = problem.order_seconds(order) - search.base
        improve_stretches(search)
        assert search.order is not None
        assert held_bytes(problem, search.order).max() <= budget, seed
        assert search.extra <= before, seed
        assert search.extra == pytest.approx(problem.order_seconds(search.order) - search.base)
        assert list(dict.fromkeys(search.order)) == list(range(problem.n)), seed
        optimum = search_states(problem, budget)
        assert optimum.finished
        assert search.extra >= optimum.bound * (1 - 1e-9) - 1e-9, seed


@pytest.mark.parametrize("first_seed", range(0, 600, 120))
def test_a_stretch_is_an_order_of_its_problem_and_no_bound_is_above_it(first_seed: int) -> None:
    seen = 0
    for seed, problem, budget, order in fitting(first_seed):
        rng = random.Random(seed)
        first = rng.randint(1, problem.n - 1)
        stop = rng.randint(first + 1, problem.n)
        if (part := stretch(problem, order, first, stop)) is None:
            continue
        seen += 1
        held = held_bytes(part.problem, part.order)
        assert held[1:].tolist() == held_bytes(problem, order)[part.start : part.stop].tolist()
        assert part.spliced(order, part.order) == order
        cuts = sorted({first, rng.randint(first, stop - 1)})
        bursts = [(op, t) for t in cuts for op in range(t + 1)]
        for relax in (True, False):
            found = solve_master(
                part.problem, budget, cuts, bursts=bursts, relax=relax, start=part.held
            )
            cost = part.problem.order_seconds(part.order) - sum(part.problem.seconds[first:])
            assert found.bound <= cost * (1 + 1e-5) + 1e-9, seed
    assert seen


def test_it_finds_what_a_wasteful_order_wastes_and_always_the_same() -> None:
    graph = INSTANCES["transformer"]
    problem, budget = flatten(graph), budget_of(graph, 0.4)
    order = fit(problem, range(problem.n), budget)
    assert order is not None
    before, found = problem.order_seconds(order), list[list[int]]()
    for _ in range(2):
        search = Search(problem, budget)
        search.order, search.extra = order, before - search.base
        improve_stretches(search)
        assert search.order is not None
        found.append(search.order)
    assert found[0] == found[1]
    trace = simulate(graph, schedule_from_order(graph, found[0]))
    assert trace.peak_bytes <= budget
    assert trace.seconds < before


def test_boundaries_are_ops_in_order_from_the_first_on_to_the_end() -> None:
    for seed, problem, _, order in fitting(0):
        for runs, offset in ((2, 0), (4, 2), (100, 50)):
            found = boundaries(problem, order, runs, offset)
            assert found == sorted(set(found)), seed
            assert 1 <= found[0] <= problem.n == found[-1], seed
