"""The same ops in an order that an allocator loses less with."""

from __future__ import annotations

import random
from functools import partial

import pytest

from planner.graphs import Graph, Op, Schedule, Value, plain_schedule, simulate
from planner.graphs.allocation import needs, runs_within
from planner.solvers import solve
from planner.solvers.search.packing import packed
from tests.strategies import transformer

MIB = 2**20


def drawn(seed: int) -> tuple[Graph, Schedule]:
    """Return a few ops on large values."""
    draw = random.Random(seed)
    values = tuple(Value(f"v{i}", draw.choice((21, 30, 41, 50, 60)) * MIB) for i in range(9))
    reads = [draw.sample(range(i), min(i, draw.choice((1, 1, 2)))) for i in range(9)]
    ops = tuple(Op(f"op{i}", "f", tuple(r), (i,), 1.0) for i, r in enumerate(reads))
    graph = Graph(ops, values, frozenset({8}))
    return graph, plain_schedule(graph)


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("reorder", [False, True])
def test_less_memory_runs_the_same_ops(*, reorder: bool, expandable: bool) -> None:
    better = 0
    for seed in range(40):
        graph, schedule = drawn(seed)
        found = needs(graph, schedule, expandable=expandable)
        room = found.needed_bytes - 10 * MIB
        if room < found.allocated_bytes:
            continue
        make = partial(packed, expandable=expandable, reorder=reorder, events=9_000)
        if (other := make(graph, schedule, room)) is None:
            continue
        better += other != schedule
        assert runs_within(graph, other, room, expandable=expandable)
        assert simulate(graph, other).peak_bytes <= room
        assert sorted(other.order) == sorted(schedule.order)
        assert reorder or not other.is_reordered
        assert other == make(graph, schedule, room)
    assert better >= 2


def scaled(layers: int) -> tuple[Graph, Schedule]:
    """Return layers that hold GiB, and a schedule that runs much of them again."""
    base = transformer(layers)
    values = tuple(Value(v.name, v.size_bytes * 700_001, v.kind) for v in base.values)
    graph = Graph(base.ops, values, base.outputs)
    schedule = solve(graph, 10**15, method="recompute_all").schedule
    assert schedule is not None
    return graph, schedule


def test_no_order_makes_tensors_smaller() -> None:
    graph, schedule = scaled(2)
    least = simulate(graph, schedule).peak_bytes
    assert packed(graph, schedule, least - MIB, expandable=True, events=200_000) is None


def test_what_runs_stays_as_it_is() -> None:
    graph, schedule = scaled(2)
    assert packed(graph, schedule, 10**15, expandable=False) == schedule


def test_small_blocks_are_left_to_themselves() -> None:
    values = tuple(Value(f"v{i}", 40_000) for i in range(3))
    ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (1,), (2,)))
    graph = Graph(ops, values, frozenset({2}))
    assert packed(graph, plain_schedule(graph), MIB, expandable=True) is None
