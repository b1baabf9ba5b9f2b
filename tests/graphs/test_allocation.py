"""What a schedule takes of a device with an allocator."""

from __future__ import annotations

from collections import Counter

import pytest

from planner.graphs import Graph, Kind, Op, Phase, Value, plain_schedule, schedule_from_order
from planner.graphs.allocation import ALIKE, CHANGING, needs, runs_within, training_events
from tests.solvers.instances import transformer

MIB = 2**20


def trained() -> Graph:
    """One layer: a parameter, what it makes, its gradient, and Adam over all of it."""
    values = (
        Value("weight", 30 * MIB, Kind.PARAMETER),
        Value("batch", 4 * MIB, Kind.INPUT),
        Value("made", 50 * MIB),
        Value("gradient", 30 * MIB, Kind.GRADIENT),
        Value("state", 60 * MIB, Kind.OPTIMIZER),
        Value("reserve", 100 * MIB, Kind.RESERVE),
    )
    ops = (
        Op("forward", "f", (0, 1), (2,), workspace_bytes=8 * MIB),
        Op("backward", "b", (2, 0), (3,), phase=Phase.BACKWARD),
        Op("step", "AdamW", (3,), (), workspace_bytes=30 * MIB, phase=Phase.OPTIMIZER,
           recomputable=False),
    )  # fmt: skip
    return Graph(ops, values, frozenset({3}))


def test_the_first_step_makes_the_state_and_every_step_ends_empty() -> None:
    graph = trained()
    events = list(training_events(graph, plain_schedule(graph)))
    held: dict[int, int] = {}
    for key, size in events:
        if size:
            held[key] = size
        else:
            del held[key]
    # the weight, two states of its size, and the last batch
    assert sorted(held.values()) == [4 * MIB, 30 * MIB, 30 * MIB, 30 * MIB]
    assert sum(size == 8 * MIB for _, size in events) == 3


def test_the_peak_in_use_is_that_of_the_tensors_and_the_rest_comes_on_top() -> None:
    graph = trained()
    found = needs(graph, plain_schedule(graph))
    # in backward: weight, batch, what forward made, gradient, two states, the reserve
    assert found.allocated_bytes == (30 + 4 + 50 + 30 + 60 + 100) * MIB
    assert found.allocated_bytes <= found.needed_bytes <= found.reserved_bytes


@pytest.mark.parametrize("expandable", [False, True])
def test_what_is_needed_suffices(*, expandable: bool) -> None:
    base = transformer(3)
    graph = Graph(base.ops, tuple(_scaled(v) for v in base.values), base.outputs)
    schedule = plain_schedule(graph)
    found = needs(graph, schedule, expandable=expandable)
    assert runs_within(graph, schedule, found.needed_bytes, expandable=expandable)
    assert not runs_within(graph, schedule, found.allocated_bytes - 512, expandable=expandable)


def _scaled(value: Value) -> Value:
    return Value(value.name, value.size_bytes * 700_001, value.kind)


def test_holes_count() -> None:
    """The second step takes its blocks out of the segment that the first one made for ``d``."""
    values = tuple(Value(name, size * MIB) for name, size in
                   [("a", 12), ("b", 12), ("c", 12), ("d", 24)])  # fmt: skip
    ops = (
        Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (), (2,)),
        Op("use a and c", "f", (0, 2), ()), Op("d", "f", (), (3,)), Op("use", "f", (1, 3), ()),
    )  # fmt: skip
    graph = Graph(ops, values)
    schedule = schedule_from_order(graph, range(6))
    found = needs(graph, schedule)
    assert found.allocated_bytes == 36 * MIB
    assert found.reserved_bytes == 60 * MIB
    assert found.needed_bytes == pytest.approx(48 * MIB, rel=0.01)
    assert needs(graph, schedule, expandable=True).needed_bytes <= 60 * MIB


def test_an_input_without_bytes_is_none_of_the_allocators() -> None:
    base = trained()
    values = (*base.values, Value("nothing", 0, Kind.INPUT))
    graph = Graph(base.ops, values, base.outputs)
    schedule = plain_schedule(graph)
    assert needs(graph, schedule) == needs(base, schedule)


@pytest.mark.parametrize("expandable", [False, True])
def test_sizes_that_change_need_no_less(*, expandable: bool) -> None:
    base = transformer(3)
    graph = Graph(base.ops, tuple(_scaled(v) for v in base.values), base.outputs)
    schedule = plain_schedule(graph)
    alike = needs(graph, schedule, expandable=expandable)
    changing = needs(graph, schedule, expandable=expandable, orders=(ALIKE, *CHANGING))
    assert changing.needed_bytes >= alike.needed_bytes
    if not expandable:
        assert changing.needed_bytes > alike.needed_bytes


def test_a_smaller_step_makes_smaller_blocks_but_of_parameters() -> None:
    graph = trained()
    events = training_events(graph, plain_schedule(graph), (1.0, 0.5))
    first, second = Counter[int](), Counter[int]()
    half = next(i for i, (_, size) in enumerate(events) if size == 2 * MIB)
    for i, (_, size) in enumerate(events):
        (first if i < half else second)[size // MIB] += bool(size)
    assert first == {30: 5, 4: 1, 50: 1, 8: 1, 0: 0}  # a weight, its gradient, states, temporary
    assert second == {2: 1, 25: 1, 4: 1, 30: 2, 0: 0}
