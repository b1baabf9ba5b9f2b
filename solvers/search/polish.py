"""Better orders near a good one: give up a repeated run, or add one, and make the rest fit.

Knows how to walk downhill from an order that fits. Giving up a run holds more, so something else is
evicted; adding one holds less, so that pruning can take out another. It stops when neither helps
anywhere, or after so much work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from planner.solvers.model.problem import Problem
from planner.solvers.search.incumbent import Search
from planner.solvers.search.prune import without_run
from planner.solvers.tuning import POLISH_WORK

Neighbour = tuple[tuple[int, int, int], list[int]]
"""What is changed, as a key that survives other changes, and the order that results."""


def polish(
    search: Search,
    *,
    target: float = 0.0,
    work: int = POLISH_WORK,
    evict: bool = True,
    deadline: float = math.inf,
) -> None:
    """Improve the best order of a search until no neighbour does, or the work is spent.

    Args:
        search: what is known; it takes in what is found.
        target: the gap, as a fraction of the step, at which to stop.
        work: the neighbours that may be tried times their length in ops.
        evict: as for ``Search.offer``; without, a neighbour takes half the time.
        deadline: of ``time.monotonic``.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (0, 1), (2,)))
    >>> search = Search(flatten(Graph(ops, tuple(Value(x, 1) for x in "abc"))), 3)
    >>> search.order, search.extra = [0, 0, 1, 0, 2], 2.0
    >>> polish(search)
    >>> search.order
    [0, 1, 2]
    """
    refused = set[tuple[int, int, int]]()
    improved = True
    while improved and search.order is not None:
        improved = False
        for key, order in _neighbours(search.problem, search.order):
            if key in refused:
                continue
            if search.gap <= target or work <= 0 or search.over(deadline):
                return
            before, work = search.extra, work - len(order)
            search.offer(order, evict=evict)
            if improved := search.extra < before:
                break
            refused.add(key)


def _neighbours(problem: Problem, order: Sequence[int]) -> Iterator[Neighbour]:
    """Yield the order with one run less, dearest first, then with one more, most promising first.

    A run more pays if its output, held from one read to a much later one, is large and cheap.
    """
    for position, key in _repeated(problem, order):
        yield key, without_run(problem, order, position)
    for position, v, key in _waits(problem, order):
        yield key, [*order[:position], problem.maker[v], *order[position:]]


def _repeated(problem: Problem, order: Sequence[int]) -> list[tuple[int, tuple[int, int, int]]]:
    count = [0] * problem.n
    found = []
    for i, op in enumerate(order):
        count[op] += 1
        if count[op] > 1:
            found.append((i, (op, count[op], -1)))
    return sorted(found, key=lambda run: (-problem.seconds[order[run[0]]], run[0]))


def _waits(problem: Problem, order: Sequence[int]) -> list[tuple[int, int, tuple[int, int, int]]]:
    """Return where a value is read long after its last use, most bytes a second first."""
    last: dict[int, int] = {}
    count = [0] * problem.n
    found = []
    for i, op in enumerate(order):
        count[op] += 1
        for v in problem.inputs[op]:
            maker, wait = problem.maker[v], i - last[v]
            last[v] = i
            if wait <= 1 or not problem.recomputable[maker] or not problem.sizes[v]:
                continue
            if all(u in last for u in problem.inputs[maker]):
                worth = wait * problem.sizes[v] / (problem.seconds[maker] + 1e-12)
                found.append((-worth, i, v, (op, count[op], v)))
        last.update(dict.fromkeys(problem.outputs[op], i))
    return [(i, v, key) for _, i, v, key in sorted(found)]
