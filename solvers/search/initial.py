"""Orders to begin from where the given order holds far too much: checkpoints at even distances.

Knows how to find the number of segments whose order peaks lowest. What else a budget asks for is up
to ``evict``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from planner.graphs import Graph
from planner.solvers.model.forward_cuts import checkpoint_orders, narrow_positions
from planner.solvers.model.order_from_kept import turning_point
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.tuning import SEGMENTS_STEP


def least_checkpointed(graph: Graph, deadline: float = math.inf) -> list[int]:
    """Return the order of least peak among the given one and those with checkpoints.

    After the deadline (of ``time.monotonic``) no more numbers of checkpoints are tried.

    >>> from planner.graphs import Op, Phase, Value
    >>> forward = tuple(Op(f"f{i}", "f", (i,), (i + 1,), 1.0) for i in range(4))
    >>> backward = tuple(Op(f"b{i}", "b", (i - 1, 8 - i), (9 - i,), 1.0, phase=Phase.BACKWARD)
    ...                  for i in (4, 3, 2, 1))
    >>> least_checkpointed(Graph(forward + backward, tuple(Value(f"x{i}", 1) for i in range(9))))
    [0, 1, 2, 3, 4, 5, 0, 6, 7]
    """
    problem, turn = flatten(graph), turning_point(graph)

    def peak(order: list[int]) -> int:
        return int(held_bytes(problem, order).max(initial=0))

    def checkpointed(segments: int) -> list[int]:
        return min(
            checkpoint_orders(graph, turn, narrow_positions(graph, turn, segments)), key=peak
        )

    best, tried = list(range(problem.n)), set[int]()
    sizes = list(_apart(turn))
    while fresh := [size for size in sizes if size not in tried and 1 < size <= turn]:
        if tried and time.monotonic() > deadline:
            break
        tried.update(fresh)
        orders: dict[int, list[int]] = {}
        for size in fresh:
            if not orders or time.monotonic() < deadline:
                orders[size] = checkpointed(size)
        size = min(orders, key=lambda size: peak(orders[size]))
        if peak(orders[size]) >= peak(best):
            break
        best, sizes = orders[size], [size - 1, size + 1]
    return best


def _apart(largest: int) -> Iterator[int]:
    """Yield sizes a quarter apart."""
    size = 2
    while size <= largest:
        yield size
        size += max(1, size // SEGMENTS_STEP)
