"""Dropping single values: the order fits, and costs less than running it anew where it can."""

from __future__ import annotations

import pytest

from planner.graphs import Graph, Op, Value, plain_schedule, schedule_from_order, simulate
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.drop_single import drop_single
from planner.solvers.search.evict import fit
from planner.solvers.tuning import DROP_REACH, PATIENCES
from tests.strategies import random_graph, transformer


@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_the_order_found_fits(first_seed: int) -> None:
    found = 0
    for seed in range(first_seed, first_seed + 100):
        graph = random_graph(seed, max_ops=20)
        problem = flatten(graph)
        budget = simulate(graph, plain_schedule(graph)).peak_bytes - 1
        order = drop_single(problem, range(problem.n), budget)
        if order is not None:
            found += 1
            assert simulate(graph, schedule_from_order(graph, order)).peak_bytes <= budget, seed
    assert found > 0


def test_what_fits_stays_and_what_is_far_off_is_left_to_others() -> None:
    problem = flatten(transformer(4))
    peak = int(held_bytes(problem, range(problem.n)).max())
    assert drop_single(problem, range(problem.n), peak) == list(range(problem.n))
    assert drop_single(problem, range(problem.n), int(peak / DROP_REACH) - 1) is None


def test_a_small_shortage_is_met_by_a_small_value() -> None:
    """Seconds per byte would drop the large value; one byte is short, and the small one is it."""
    ops = (
        Op("large", "f", (), (0,), 8.0),
        Op("small", "f", (), (1,), 1.0),
        Op("wide", "f", (), (2,), 1.0),
        Op("narrow", "f", (2,), (3,), 1.0),
        Op("end", "f", (0, 1, 3), (4,), 1.0),
    )
    sizes = (100, 2, 10, 1, 1)
    values = tuple(Value(op.name, size) for op, size in zip(ops, sizes, strict=True))
    problem = flatten(Graph(ops, values))
    budget = int(held_bytes(problem, range(5)).max()) - 1
    found = drop_single(problem, range(5), budget)
    assert found == [0, 1, 2, 3, 1, 4]
    fitted = [fit(problem, range(5), budget, patience=patience) for patience in PATIENCES]
    assert all(problem.order_seconds(f) > problem.order_seconds(found) for f in fitted if f)
