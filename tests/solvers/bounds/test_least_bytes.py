"""No schedule holds less than is proved of the last runs, and gradients count."""

from __future__ import annotations

import pytest

from planner.graphs import Graph, Op, Value
from planner.solvers import minimum_budget
from planner.solvers.bounds.least_bytes import least_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.minimum_budget import proven_floor
from planner.solvers.model.problem import flatten
from tests.strategies import random_graph


@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_nothing_fits_less(first_seed: int) -> None:
    raised = 0
    for seed in range(first_seed, first_seed + 100):
        problem = flatten(graph := random_graph(seed, max_ops=11))
        found = least_bytes(problem)
        assert search_states(problem, found - 1).order is None, seed
        raised += found > proven_floor(graph)
    assert raised


def test_gradients_that_are_there_count() -> None:
    ops, values = list[Op](), list[Value]()
    for layer in range(6):
        values += [Value(f"h{layer}", 10), Value(f"g{layer}", 3)]
        ops += [
            Op(f"h{layer}", "f", (), (2 * layer,), 1.0, workspace_bytes=20),
            Op(f"g{layer}", "f", (2 * layer,), (2 * layer + 1,), 1.0),
        ]
    graph = Graph(tuple(ops), tuple(values), frozenset(range(1, 12, 2)))
    found = minimum_budget(graph)
    assert found.floor_bytes == found.least_bytes == 30 + 5 * 3
