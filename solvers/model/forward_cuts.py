"""Cuts of the forward pass: where a chain of segments can be parted, and what crosses there.

Any graph becomes a chain if the state at a position is *everything* made before it and read after
it in the forward pass. On a chain that is one value; across a long skip it is several.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from planner.graphs import Graph
from planner.solvers.model.order_from_kept import order_from_kept


def spans(graph: Graph, turn: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(value, maker, last reader)`` of what is made and read before op ``turn``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0,), (2,)))
    >>> list(spans(Graph(ops, tuple(Value(n, 1) for n in "xyz")), turn=3))
    [(0, 0, 2)]
    """
    for value, maker in enumerate(graph.producer):
        readers = graph.consumers[value]
        if maker is not None and (before := bisect_left(readers, turn)):
            yield value, maker, readers[before - 1]


def crossing(graph: Graph, turn: int, positions: Sequence[int]) -> frozenset[int]:
    """Return the values that cross any of the ascending positions of the forward pass.

    A value crosses position ``p`` if an op before ``p`` makes it and one from ``p`` on, before
    ``turn``, reads it.

    Args:
        graph: the step.
        turn: the first backward op.
        positions: ascending, of the forward pass.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xyz"))
    >>> sorted(crossing(g, 3, [2])), sorted(crossing(g, 3, [1]))
    ([0, 1], [0])
    """
    return frozenset(
        value
        for value, maker, last in spans(graph, turn)
        if bisect_right(positions, maker) < bisect_right(positions, last)
    )


def checkpoint_orders(graph: Graph, turn: int, positions: Sequence[int]) -> Iterator[list[int]]:
    """Yield the orders that keep what crosses the positions: with the last segment, and without.

    The backward pass begins with the last segment, so dropping it seldom pays; but what is
    recomputed late can hold less than what is kept.

    Args:
        graph: the step.
        turn: the first backward op.
        positions: ascending, of the forward pass.

    >>> from planner.graphs import Op, Phase, Value
    >>> ops = tuple(Op(f"f{i}", "f", (i,), (i + 1,)) for i in range(2))
    >>> back = Op("b", "b", (1, 2), (3,), phase=Phase.BACKWARD)
    >>> g = Graph((*ops, back), tuple(Value(f"x{i}", 1) for i in range(4)))
    >>> list(checkpoint_orders(g, 2, [1]))
    [[0, 1, 2], [0, 1, 1, 2]]
    """
    kept = crossing(graph, turn, positions)
    start = positions[-1] if positions else 0
    tail = {v for op in graph.ops[start:turn] for v in op.outputs}
    yield order_from_kept(graph, kept | tail, turn)
    yield order_from_kept(graph, kept, turn)


def crossing_bytes(graph: Graph, turn: int) -> list[int]:
    """Return the size of ``crossing`` at every position from 0 to ``turn``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0, 1), (2,)))
    >>> crossing_bytes(Graph(ops, (Value("x", 5), Value("y", 2), Value("z", 9))), turn=3)
    [0, 5, 7, 0]
    """
    change = [0] * (turn + 2)
    for value, maker, last in spans(graph, turn):
        change[maker + 1] += graph.values[value].size_bytes
        change[last + 1] -= graph.values[value].size_bytes
    return list(accumulate(change))[: turn + 1]


def narrow_positions(graph: Graph, turn: int, segments: int) -> list[int]:
    """Part the forward pass into segments of about equal length at its narrowest places.

    Each of the ``segments - 1`` cuts falls where the fewest bytes cross, within half a segment of
    where an even division would put it.

    Args:
        graph: the step.
        turn: the first backward op.
        segments: into how many parts.

    >>> from planner.graphs import Op, Value
    >>> ops = tuple(Op(f"f{i}", "f", (i,), (i + 1,)) for i in range(9))
    >>> narrow_positions(Graph(ops, tuple(Value(f"x{i}", 1) for i in range(10))), 9, 3)
    [3, 6]
    """
    size, length = crossing_bytes(graph, turn), turn / segments
    found: set[int] = set()
    for k in range(1, segments):
        ideal = k * length
        nearby = range(max(1, round(ideal - length / 2) + 1), min(turn, round(ideal + length / 2)))
        choices = nearby or range(max(1, round(ideal)), min(turn, round(ideal) + 1))
        found.update(sorted(choices, key=lambda p: (size[p], abs(p - ideal)))[:1])
    return sorted(found)
