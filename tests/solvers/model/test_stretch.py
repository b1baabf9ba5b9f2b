"""Stretches of orders as graphs of their own: they hold what the whole holds there."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from planner.graphs import Graph, Op, Value, plain_schedule, simulate
from planner.solvers import floor_bytes, solve
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.model.stretch import Stretch, stretch
from planner.solvers.search.evict import fit
from tests.strategies import random_graph


def fitting(first_seed: int) -> Iterator[tuple[int, Problem, int, list[int]]]:
    """Yield random problems with budgets, and orders that fit them and may be far from best."""
    for seed in range(first_seed, first_seed + 120):
        graph, rng = random_graph(seed, max_ops=10), random.Random(seed)
        problem, low = flatten(graph), floor_bytes(graph)
        high = simulate(graph, plain_schedule(graph)).peak_bytes
        budget = rng.randint(low, max(low, (low + high) // 2))
        order = fit(problem, range(problem.n), budget, patience=rng.choice((0.0, 1.0)))
        if order is not None and problem.n > 2:
            yield seed, problem, budget, order


def as_it_is(part: Stretch, order: list[int]) -> list[int]:
    """Return the order of a stretch's own graph that is what runs there already."""
    return [0, *(1 + part.ops.index(op) for op in order[part.start : part.stop])]


@pytest.mark.parametrize("first_seed", range(0, 480, 120))
def test_it_holds_what_the_whole_holds_and_its_orders_fit_in(first_seed: int) -> None:
    again = 0
    for seed, problem, budget, order in fitting(first_seed):
        rng = random.Random(seed)
        start = rng.randint(0, len(order) - 1)
        stop = rng.randint(start + 1, len(order))
        part = stretch(problem, order, start, stop)
        local = as_it_is(part, order)
        assert part.order(local) == order[start:stop], seed
        held = held_bytes(flatten(part.graph), local)[1:]
        assert (held >= held_bytes(problem, order)[start:stop]).all(), seed
        if len(part.ops) == stop - start:
            assert held.tolist() == held_bytes(problem, order)[start:stop].tolist(), seed
        found = solve(part.graph, budget)
        if held.max() > budget:
            continue
        assert found.schedule is not None, "what runs there already fits"
        better = part.order(found.schedule.order)
        whole = [*order[:start], *better, *order[stop:]]
        assert held_bytes(problem, whole).max() <= budget, seed
        assert list(dict.fromkeys(whole)) == list(range(problem.n)), seed
        before, after = problem.order_seconds(order[start:stop]), problem.order_seconds(better)
        assert after <= before * (1 + 1e-5) + 1e-9, seed
        again += not set(part.ops).isdisjoint(order[:start])
    assert again


def test_what_a_wasteful_stretch_wastes_is_found() -> None:
    ops = (
        Op("x", "f", (), (0,)),
        Op("a", "f", (0,), (1,), 1.0),
        Op("b", "f", (1,), (2,)),
        Op("c", "f", (1, 2), (3,)),
        Op("d", "f", (1, 3), (4,)),
    )
    problem = flatten(Graph(ops, tuple(Value(v, 1) for v in "xabcd")))
    order = [0, 1, 2, 1, 3, 1, 4]
    part = stretch(problem, order, 2, 6)
    found = solve(part.graph, 4).schedule
    assert found is not None
    assert part.graph.seconds == 1.0, "a ran before, and runs here first"
    assert part.order(found.order) == [2, 1, 3]
