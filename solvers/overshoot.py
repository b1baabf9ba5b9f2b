"""Where an order overshoots a budget: the steps at which the next cuts belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solvers.problem import Problem, held_bytes


def overshoots(
    problem: Problem, order: Sequence[int], budget: int, cuts: Sequence[int], *, most: int = 3
) -> list[int]:
    """Return the first runs at which an order overshoots most, each a little apart, no old cuts.

    A repeated run counts as the op that first runs after it.

    >>> from graphs import Graph, Op, Value
    >>> from solvers.problem import flatten
    >>> g = Graph(tuple(Op(f"{i}", "f", (), (i,)) for i in range(4)),
    ...           tuple(Value(f"{i}", i) for i in range(4)))
    >>> overshoots(flatten(g), [0, 1, 2, 3], 1, []), overshoots(flatten(g), [0, 1, 2, 3], 1, [3])
    ([3], [2])
    """
    held = held_bytes(problem, order)
    bases = _bases(order, problem.n)
    apart = max(1, problem.n // 100)
    found: list[int] = []
    for i in sorted(np.flatnonzero(held > budget).tolist(), key=lambda i: (-held[i], i)):
        t = bases[i]
        if t not in cuts and all(abs(t - u) > apart for u in found):
            found.append(t)
            if len(found) == most:
                break
    return found


def _bases(order: Sequence[int], n: int) -> list[int]:
    """Return for each position the op that it runs first or, if repeated, that first runs next."""
    bases: list[int] = []
    frontier = -1
    for op in order:
        frontier = max(frontier, op)
        bases.append(op if op == frontier else min(frontier + 1, n - 1))
    return bases
