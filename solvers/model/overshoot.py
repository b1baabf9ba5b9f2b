"""Where an order overshoots a budget: the steps at which the next cuts and bursts belong."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence

import numpy as np

from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.tuning import CUTS_APART, MOST_NEW_BURSTS, MOST_NEW_CUTS


def overshoots(
    problem: Problem,
    order: Sequence[int],
    budget: int,
    cuts: Collection[int],
    *,
    repeated: bool = True,
    most: int = MOST_NEW_CUTS,
) -> list[int]:
    """Return the first runs at which an order overshoots most, each a little apart, no old cuts.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
        cuts: the ops that are cuts already.
        repeated: count a repeated run as the op that first runs next.
        most: how many at most.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> g = Graph(tuple(Op(f"{i}", "f", (), (i,)) for i in range(4)),
    ...           tuple(Value(f"{i}", i) for i in range(4)))
    >>> overshoots(flatten(g), [0, 1, 2, 3], 1, []), overshoots(flatten(g), [0, 1, 2, 3], 1, [3])
    ([3], [2])
    """
    held = held_bytes(problem, order)
    bases = _bases(order, problem.n)
    apart = max(1, problem.n // CUTS_APART)
    found: list[int] = []
    for i in sorted(np.flatnonzero(held > budget).tolist(), key=lambda i: (-held[i], i)):
        t = bases[i]
        if (repeated or t == order[i]) and t not in cuts and all(abs(t - u) > apart for u in found):
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


def bursts(
    problem: Problem,
    order: Sequence[int],
    budget: int,
    cuts: Sequence[int],
    *,
    most: int = MOST_NEW_BURSTS,
) -> list[tuple[int, int]]:
    """Return the repeated runs at which an order overshoots most, each with the cut before it.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
        cuts: the ops at whose first runs the windows begin.
        most: how many at most.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> g = Graph(tuple(Op(f"{i}", "f", (), (i,)) for i in range(4)),
    ...           tuple(Value(f"{i}", 1 + i) for i in range(4)), frozenset({3}))
    >>> bursts(flatten(g), [0, 1, 2, 3, 1], 5, [1, 2])
    [(1, 2)]
    """
    held = held_bytes(problem, order)
    worst: dict[tuple[int, int], int] = {}
    frontier = -1
    for i, op in enumerate(order):
        if op <= frontier and held[i] > budget and (k := bisect_right(cuts, frontier)):
            burst = (op, cuts[k - 1])
            worst[burst] = max(int(held[i]), worst.get(burst, 0))
        frontier = max(frontier, op)
    return sorted(worst, key=lambda burst: (-worst[burst], burst))[:most]
