"""Orders that are none are noticed where bytes are counted."""

from __future__ import annotations

import pytest

from planner.graphs import Graph, Op, Value
from planner.solvers.model.problem import flatten, held_bytes

OPS = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0, 1), (2,)))
STEP = flatten(Graph(OPS, tuple(Value(x, size) for x, size in zip("abc", (1, 2, 4), strict=True))))
ENDING = flatten(Graph(OPS, tuple(Value(x, 1) for x in "abc"), frozenset({0})))


def test_a_value_that_is_read_before_it_is_made() -> None:
    with pytest.raises(AssertionError, match="before it is made"):
        held_bytes(STEP, [1, 0, 2])


def test_a_value_that_the_end_needs_and_nothing_makes() -> None:
    with pytest.raises(AssertionError, match="the end needs"):
        held_bytes(ENDING, [])


def test_copies_and_what_stays_to_the_end() -> None:
    assert held_bytes(STEP, [0, 1, 0, 2]).tolist() == [1, 3, 3, 7]
    assert held_bytes(ENDING, [0, 0, 1, 2, 0]).tolist() == [1, 1, 2, 3, 1]


def test_no_order_and_ops_that_touch_nothing() -> None:
    assert held_bytes(STEP, []).tolist() == []
    alone = flatten(Graph((Op("a", "f", (), (), workspace_bytes=3),), ()))
    assert held_bytes(alone, [0, 0]).tolist() == [3, 3]
