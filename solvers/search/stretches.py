"""Better plans from better stretches: each solved as a graph of its own, all else as it is.

What is held where a stretch begins and ends is not changed, so stretches of several lengths follow
one another, each beginning in the middle of another. Effort is counted, not timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from planner.solvers.api import Limits
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.model.stretch import Stretch, stretch
from planner.solvers.search.incumbent import Search
from planner.solvers.search.polish import polish
from planner.solvers.search.time_cuts import run_cuts
from planner.solvers.tuning import (
    STRETCH_GAIN,
    STRETCH_GAP,
    STRETCH_POLISH_WORK,
    STRETCH_RUNS,
    STRETCH_WORK,
    STRETCH_WORTH,
)


def improve_stretches(search: Search, limits: Limits, *, target: float = 0.0) -> None:
    """Improve the best order of a search stretch by stretch, short ones first.

    Stretches from the middles of the last ones are solved where those got on.

    Args:
        search: what is known, with an order that fits; it takes in what is found.
        limits: of which the seed counts.
        target: the gap, as a fraction of the step, at which to stop.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("x", "f", (), (0,)), Op("a", "f", (0,), (1,), 1.0), Op("b", "f", (1,), (2,)),
    ...        Op("c", "f", (1, 2), (3,)), Op("d", "f", (1, 3), (4,)))
    >>> search = Search(flatten(Graph(ops, tuple(Value(v, 1) for v in "xabcd"))), 4)
    >>> search.order, search.extra = [0, 1, 2, 1, 3, 1, 4], 2.0
    >>> improve_stretches(search, Limits())
    >>> search.order
    [0, 1, 2, 3, 4]
    """
    for runs in STRETCH_RUNS:
        before = math.inf
        for offset in (0, runs // 2):
            if search.order is None or search.gap <= target or search.over():
                return
            if before - search.extra > STRETCH_GAIN * search.base:
                before = search.extra
                _sweep(search, limits, runs, offset)


def boundaries(problem: Problem, order: Sequence[int], runs: int, offset: int = 0) -> list[int]:
    """Return positions of first runs at which an order holds little, and its length.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included; first runs in the graph's order.
        runs: about how far apart, in positions of the order.
        offset: about where the first is.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = tuple(Op(f"{i}", "f", (i - 1,) if i else (), (i,)) for i in range(9))
    >>> chain = flatten(Graph(ops, tuple(Value(f"{i}", 1 + i % 3) for i in range(9))))
    >>> boundaries(chain, range(9), 3), boundaries(chain, range(9), 3, 2)
    ([1, 4, 7, 9], [2, 4, 7, 9])
    """
    held, positions = held_bytes(problem, order), Positions(problem, order)
    firsts = [positions.first(o) for o in range(1, problem.n)]
    found = [next((at for at in firsts if at >= offset), len(order))]
    while len(order) - found[-1] > 1.5 * runs:
        far = [at for at in firsts if at - found[-1] >= runs / 2]
        near = [at for at in far if at - found[-1] <= 1.5 * runs] or far[:1]
        if not near:
            break
        found.append(min(near, key=lambda at: (held[at] - problem.own(order[at]), at)))
    return found if found[-1] == len(order) else [*found, len(order)]


def _sweep(search: Search, limits: Limits, runs: int, offset: int) -> None:
    """Solve stretches one after another where enough runs again; keep what they make together."""
    problem, order = search.problem, list(search.order or ())
    left = boundaries(problem, order, runs, offset)[::-1]
    while len(left) > 1 and not search.over():
        start, stop = left.pop(), left[-1]
        if _repeated_seconds(problem, order, start, stop) > STRETCH_WORTH * search.base:
            better = _better(search, limits, stretch(problem, order, start, stop), order)
            order[start:stop] = better
            left = [at + len(better) - (stop - start) for at in left]
    search.offer(order, evict=False)


def _repeated_seconds(problem: Problem, order: Sequence[int], start: int, stop: int) -> float:
    """Return the seconds of what runs in a stretch and ran before, in it or not."""
    first = set(order[start:stop]) - set(order[:start])
    seconds = problem.order_seconds(order[start:stop])
    return seconds - sum(problem.seconds[o] for o in sorted(first))


def _better(search: Search, limits: Limits, part: Stretch, order: Sequence[int]) -> list[int]:
    """Return the best order found of a stretch of one that fits; its own if that does not here."""
    mine = list(order[part.start : part.stop])
    near = Search(flatten(part.graph), search.budget, deadline=search.deadline)
    local = [0, *(1 + part.ops.index(o) for o in mine)]
    if held_bytes(near.problem, local).max() > search.budget:
        return mine
    near.take(local)
    if near.extra > 0.0:
        run_cuts(
            near,
            replace(limits, gap=STRETCH_GAP).until(search.deadline),
            most_work=STRETCH_WORK,
            tight=False,
        )
        polish(near, target=STRETCH_GAP, work=STRETCH_POLISH_WORK, deadline=near.deadline)
    return mine if near.order is None else part.order(near.order)
