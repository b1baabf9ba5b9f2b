"""What of a step may leave for the host, and where in the host's memory each copy lies.

The host's memory for one run of a step is one block; every value that is offloaded has a place in
it from the OFFLOAD step until its copy back has been waited for. Places are given by the order of
steps alone, so that a plan knows beforehand how large the block is.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.graphs.graph import Graph, Op, Phase
from planner.graphs.schedule import Action, Schedule, Subject

ALIGNMENT = 64
"""Bytes at a multiple of which every place begins: no tensor wants more."""

_NOT_OURS = frozenset({"tangent", "rng_state", "copy_"})
"""Ops of a captured step that make what autograd or the generator owns, or write what stays."""


@dataclass(frozen=True)
class HostLayout:
    """The place of each copy: ``offset_bytes`` by the index of its OFFLOAD step, of ``size_bytes``.

    >>> HostLayout({3: 0}, 64).size_bytes
    64
    """

    offset_bytes: Mapping[int, int]
    size_bytes: int


def host_layout(graph: Graph, schedule: Schedule) -> HostLayout:
    """Give every value that a schedule offloads a place, the lowest that is free then.

    Args:
        graph, schedule: what runs; the schedule is one that ``simulate`` accepts.

    >>> from planner.graphs.graph import Value
    >>> from planner.graphs.schedule import Step
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4)))
    >>> moved = [Step(a, 0) for a in (Action.COMPUTE, Action.OFFLOAD, Action.FREE, Action.FETCH)]
    >>> host_layout(g, Schedule((*moved, Step(Action.COMPUTE, 1))))
    HostLayout(offset_bytes={1: 0}, size_bytes=64)
    """
    offsets: dict[int, int] = {}
    taken: list[tuple[int, int]] = []  # where each place begins and ends, in order
    place: dict[int, tuple[int, int]] = {}  # value -> its place
    size = 0
    for i, value, begins in _changes(graph, schedule):
        if not begins:
            taken.remove(place.pop(value))
            continue
        offset = _lowest(taken, aligned(graph.values[value].size_bytes))
        place[value] = offset, offset + aligned(graph.values[value].size_bytes)
        insort(taken, place[value])
        offsets[i], size = offset, max(size, place[value][1])
    return HostLayout(offsets, size)


def _changes(graph: Graph, schedule: Schedule) -> Iterator[tuple[int, int, bool]]:
    """Yield the step, the value, and whether its copy on the host begins or ends to be there."""
    arriving = set[int]()
    for i, step in enumerate(schedule.steps):
        if step.action is Action.OFFLOAD:
            yield i, step.index, True
        elif step.action is Action.FETCH:
            arriving.add(step.index)
        elif arriving:
            op = graph.ops[step.index] if step.action.subject is Subject.OP else None
            touched = (step.index,) if op is None else (*op.inputs, *op.outputs)
            for v in arriving.intersection(touched):
                arriving.discard(v)
                yield i, v, False


def _lowest(taken: list[tuple[int, int]], size: int) -> int:
    end = 0
    for begin, after in taken:
        if begin - end >= size:
            return end
        end = max(end, after)
    return end


def aligned(size_bytes: int) -> int:
    """Return what so many bytes take on the host, where each place begins at a multiple.

    Args:
        size_bytes: of a value.

    >>> aligned(0), aligned(64), aligned(65)
    (64, 64, 128)
    """
    return max(ALIGNMENT, -(-size_bytes // ALIGNMENT) * ALIGNMENT)


_ONCE = {
    "aten._native_batch_norm_legit_functional.default": 3,
    "aten._batch_norm_with_update_functional.default": 4,
}
"""Ops that make only so many of their outputs again when they run again: running statistics are
those of the first run."""


def movable(graph: Graph) -> frozenset[int]:
    """Return the values that may be away: a step makes them, for itself alone, and nobody else.

    Not among them: what is resident (parameters, buffers, a caller's inputs); outputs, which the
    caller holds; gradients that autograd takes, or has handed in; states of random generators; what
    a later op writes into, which may not be copied meanwhile; what other ranks send or take; and
    what has no bytes.

    >>> from planner.graphs.graph import Value
    >>> ops = (Op("a", "f", (0,), (1,)), Op("b", "f", (1,), (2,)))
    >>> sorted(movable(Graph(ops, (Value("x", 4), Value("a", 4), Value("b", 4)), frozenset({2}))))
    [1]
    """
    kept = set(graph.resident | graph.outputs)
    for op in graph.ops:
        if op.target in _NOT_OURS or op.phase is Phase.COMMUNICATION:
            kept.update(op.outputs)
        kept.update(op.outputs[_ONCE.get(op.target.partition("+")[0], len(op.outputs)) :])
        if op.phase in {Phase.OPTIMIZER, Phase.COMMUNICATION} or _writes(graph, op):
            kept.update(op.inputs)
    return frozenset(v for v, x in enumerate(graph.values) if x.size_bytes and v not in kept)


def _writes(graph: Graph, op: Op) -> bool:
    """Tell whether an op makes no bytes of its own: it writes into what it reads, or gives it."""
    return not any(graph.values[v].size_bytes for v in op.outputs)
