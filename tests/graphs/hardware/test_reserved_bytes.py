"""What an allocator has reserved, step by step, beside the bytes in use."""

from __future__ import annotations

import numpy as np
import pytest

from planner.graphs import Graph, Kind, Op, Value, plain_schedule, simulate
from planner.graphs.hardware.allocators import CachingAllocator
from planner.graphs.hardware.reserved_bytes import ReservedBytes
from tests.strategies import random_graph, transformer

MIB = 2**20


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_reserved_is_beside_what_is_allocated(seed: int, *, expandable: bool) -> None:
    base = transformer(2) if seed == 0 else random_graph(seed)
    values = tuple(Value(v.name, v.size_bytes * 300_007, v.kind) for v in base.values)
    graph = Graph(base.ops, values, base.outputs)
    schedule = plain_schedule(graph)
    exact = simulate(graph, schedule)
    trace = simulate(graph, schedule, memory=ReservedBytes(expandable=expandable))
    assert trace.seconds == exact.seconds
    assert np.array_equal(trace.allocated_bytes, exact.live_bytes)
    assert np.array_equal(exact.allocated_bytes, exact.live_bytes)
    assert (trace.live_bytes >= trace.allocated_bytes).all()
    assert (np.diff(trace.live_bytes) >= 0).all()  # with plenty, nothing is given back
    assert (trace.live_bytes % (2 * MIB) == 0).all()
    assert trace.peak_bytes >= exact.peak_bytes
    reserve = trace.kinds.index(Kind.RESERVE)
    others = np.delete(trace.by_kind - exact.by_kind, reserve, axis=1)
    assert not others.any()


def test_what_the_device_keeps_is_none_of_the_allocators() -> None:
    graph = Graph(
        (Op("a", "f", (), (0,), workspace_bytes=3 * MIB),),
        (Value("a", 12 * MIB), Value("reserve", 100 * MIB + 1, Kind.RESERVE)),
        frozenset({0}),
    )
    trace = simulate(graph, plain_schedule(graph), memory=ReservedBytes())
    assert trace.peak_bytes == 100 * MIB + 1 + 12 * MIB + 20 * MIB
    assert trace.allocated_bytes.tolist() == [100 * MIB + 1 + 15 * MIB]


def test_it_is_what_the_allocator_says() -> None:
    graph = transformer(2)
    graph = Graph(
        graph.ops,
        tuple(Value(v.name, v.size_bytes * 500_009, v.kind) for v in graph.values),
        graph.outputs,
    )
    allocator, live = CachingAllocator(), {}
    for v in sorted(graph.resident):
        live[v] = allocator.allocate(graph.values[v].size_bytes)
    first = next(iter(plain_schedule(graph).steps))
    for v in graph.ops[first.index].outputs:
        live[v] = allocator.allocate(graph.values[v].size_bytes)
    allocator.allocate(graph.ops[first.index].workspace_bytes)
    trace = simulate(graph, plain_schedule(graph), memory=ReservedBytes())
    assert trace.live_bytes[0] == allocator.reserved
