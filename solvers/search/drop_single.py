"""Fit an order that overshoots a little: drop and remake single values, the cheapest that help.

Where ``evict`` runs the order anew and evicts by seconds per byte, this changes as little as it
can: at the step that overshoots most it compares what dropping each value held there would cost
with the bytes it would spare of those that are too many.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.tuning import DROP_REACH, DROP_TRIES, DROP_WORK


def drop_single(
    problem: Problem, order: Sequence[int], budget: int, *, deadline: float = math.inf
) -> list[int] | None:
    """Return an order that fits, ``None`` if dropping single values does not get there.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
        deadline: of ``time.monotonic``, at which to give up.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 1.0), Op("c", "f", (1,), (2,)),
    ...        Op("d", "f", (0, 2), (3,)))
    >>> values = (Value("a", 2), Value("b", 4), Value("c", 2), Value("d", 1))
    >>> drop_single(flatten(Graph(ops, values)), [0, 1, 2, 3], 7)
    [0, 1, 2, 0, 3]
    """
    if held_bytes(problem, order).max(initial=0) > DROP_REACH * budget:
        return None
    found, excess = list(order), _excess(problem, order, budget)
    for _ in range(DROP_WORK // (DROP_TRIES * max(1, len(order)))):
        if excess == 0:
            return found
        if time.monotonic() > deadline:
            return None
        better = _better(problem, found, budget, excess)
        if better is None:
            return None
        found, excess = better
    return None


def _excess(problem: Problem, order: Sequence[int], budget: int) -> int:
    """Return the bytes over the budget, summed over the steps."""
    return int(np.maximum(held_bytes(problem, order) - budget, 0).sum())


def _better(
    problem: Problem, order: Sequence[int], budget: int, excess: int
) -> tuple[list[int], int] | None:
    """Return the order with one value dropped, and its excess: least seconds for what it spares."""
    held, positions = held_bytes(problem, order), Positions(problem, order)
    worst = int(held.argmax())
    short = int(held[worst]) - budget
    ranked, barred = [], defaultdict[int, set[int]](set)
    for v, back in _held_across(problem, order, worst):
        if (runs := _closure(problem, positions, v, back, barred[back])) is not None:
            cost = sum(problem.seconds[o] for o in runs)
            ranked.append((cost / min(problem.sizes[v], short), back, v, runs))
    best: tuple[float, list[int], int] | None = None
    for _, back, _, runs in sorted(ranked)[:DROP_TRIES]:
        tried = [*order[:back], *runs, *order[back:]]
        left = _excess(problem, tried, budget)
        if left < excess:
            rate = (sum(problem.seconds[o] for o in runs) + 1e-12) / (excess - left)
            if best is None or rate < best[0]:
                best = rate, tried, left
    return None if best is None else best[1:]


def _held_across(problem: Problem, order: Sequence[int], at: int) -> Iterator[tuple[int, int]]:
    """Yield what is held at a position that its op does not touch, and where it is next read."""
    busy = {*problem.inputs[order[at]], *problem.outputs[order[at]]}
    made = {v for op in order[:at] for v in problem.outputs[op]} - busy
    for i in range(at + 1, len(order)):
        for v in problem.inputs[order[i]]:
            if v in made:
                made.discard(v)
                if problem.sizes[v] and problem.recomputable[problem.maker[v]]:
                    yield v, i
        made.difference_update(problem.outputs[order[i]])


def _closure(
    problem: Problem, positions: Positions, v: int, at: int, barred: set[int]
) -> list[int] | None:
    """Return the ops that remake a value at a position; ``None`` if one may not run again.

    ``barred`` are ops known to need such a one there; it grows.
    """
    reader: dict[int, int] = {}
    stack = [(v, problem.n)]
    while stack:
        u, by = stack.pop()
        op = problem.maker[u]
        if op in reader:
            continue
        reader[op] = by
        if op in barred or not problem.recomputable[op]:
            while op != problem.n:
                barred.add(op)
                op = reader[op]
            return None
        stack += [(w, op) for w in problem.inputs[op] if not positions.holds(w, at)]
    return sorted(reader)
