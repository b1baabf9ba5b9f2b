"""Moves that cost nothing leave a schedule that is valid, of the same ops."""

from __future__ import annotations

import random

import pytest

from planner.graphs import Action, Graph, Op, Phase, Schedule, Value, plain_schedule, simulate
from planner.solvers import solve
from planner.solvers.search.free_moves import FreeMoves
from tests.strategies import random_graph, transformer


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_any_number_of_moves_is_valid_and_costs_nothing(seed: int, *, reorder: bool) -> None:
    graph = transformer(2) if seed % 2 else random_graph(seed)
    schedule = solve(graph, 10**15, method="recompute_all" if seed % 3 else "plain").schedule
    assert schedule is not None
    moves = FreeMoves(graph, random.Random(seed), [True] * len(graph.values), reorder=reorder)
    steps = list(schedule.steps)
    made = sum(moves.make(steps) for _ in range(200))
    assert made > 0 or not seed % 2, "a few random ops may leave no room for any"
    moved = Schedule(tuple(steps))
    assert sorted(moved.order) == sorted(schedule.order)
    assert simulate(graph, moved).seconds == pytest.approx(simulate(graph, schedule).seconds)
    assert reorder or not moved.is_reordered


def drawing() -> Graph:
    """Two kernels that draw random numbers, each behind the op that remembers the generator."""
    values = tuple(Value(name, 8) for name in ("x", "state", "mask", "state'", "mask'", "end"))
    state = {"recomputable": False}
    ops = (
        Op("x", "f", (), (0,)),
        Op("rng", "rng_state", (), (1,), **state),  # type: ignore[arg-type]
        Op("draw", "bernoulli", (0, 1), (2,)),
        Op("rng'", "rng_state", (), (3,), **state),  # type: ignore[arg-type]
        Op("draw'", "bernoulli", (0, 3), (4,)),
        Op("end", "f", (2, 4), (5,)),
    )
    return Graph(ops, values, frozenset({5}))


def test_what_draws_random_numbers_keeps_its_order() -> None:
    graph = drawing()
    moves = FreeMoves(graph, random.Random(0), [True] * 6, reorder=True)
    steps = list(plain_schedule(graph).steps)
    for _ in range(500):
        moves.make(steps)
        order = [s.index for s in steps if s.action is Action.COMPUTE and s.index in {1, 2, 3, 4}]
        assert order == [1, 2, 3, 4]


def test_nothing_is_kept_beyond_the_end_of_a_pass() -> None:
    values = tuple(Value(name, 8) for name in ("a", "b", "tangent", "gradient"))
    ops = (
        Op("a", "f", (), (0,)),
        Op("b", "f", (0,), (1,)),
        Op("tangent", "tangent", (), (2,), phase=Phase.BACKWARD, recomputable=False),
        Op("back", "g", (1, 2), (3,), phase=Phase.BACKWARD),
        Op("give", "accumulate_grad", (3,), (), phase=Phase.BACKWARD, recomputable=False),
        Op("step", "SGD", (3,), (), phase=Phase.OPTIMIZER, recomputable=False),
    )
    graph = Graph(ops, values)
    moves = FreeMoves(graph, random.Random(1), [True] * 4, reorder=True)
    steps = list(plain_schedule(graph).steps)
    made = 0
    for _ in range(200):
        made += moves.make(steps)
        names = [s.index if s.action is Action.COMPUTE else ~s.index for s in steps]
        assert names.index(~0) < names.index(2)  # a dies in the forward pass
        assert names.index(~1) < names.index(4)  # and b before gradients are given
    assert made > 0
