"""Better plans from better stretches: each solved as a problem of its own, all else as it is.

A tight budget is mostly about what runs again within a layer or a few, and a stretch of an order
is small enough for integer masters that see what runs again, and for a thorough local search. What
is held where a stretch ends is not changed, so stretches of several lengths follow one another,
each beginning in the middle of another. Effort is counted, not timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

from planner.solvers.model.master import solve_master
from planner.solvers.model.master_points import CutPlan
from planner.solvers.model.master_program import Burst
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.model.overshoot import bursts, overshoots
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.model.stretch import Stretch, stretch
from planner.solvers.search.incumbent import Search
from planner.solvers.search.polish import polish
from planner.solvers.tuning import (
    STRETCH_AIMS,
    STRETCH_GAP,
    STRETCH_POLISH_WORK,
    STRETCH_RELAXED_ROUNDS,
    STRETCH_ROUNDS,
    STRETCH_RUNS,
    STRETCH_WORK,
    STRETCH_WORTH,
)


def improve_stretches(search: Search, *, target: float = 0.0, deadline: float = math.inf) -> None:
    """Improve the best order of a search stretch by stretch, short ones first.

    Args:
        search: what is known, with an order that fits; it takes in what is found.
        target: the gap, as a fraction of the step, at which to stop.
        deadline: of ``time.monotonic``.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("x", "f", (), (0,)), Op("a", "f", (0,), (1,), 1.0), Op("b", "f", (1,), (2,)),
    ...        Op("c", "f", (1, 2), (3,)), Op("d", "f", (1, 3), (4,)))
    >>> search = Search(flatten(Graph(ops, tuple(Value(v, 1) for v in "xabcd"))), 4)
    >>> search.order, search.extra = [0, 1, 2, 1, 3, 1, 4], 2.0
    >>> improve_stretches(search)
    >>> search.order
    [0, 1, 2, 3, 4]
    """
    for runs in STRETCH_RUNS:
        for offset in (0, runs // 2):
            if search.order is None or search.gap <= target or search.over(deadline):
                return
            _sweep(search, runs, offset, min(deadline, search.deadline))


def boundaries(problem: Problem, order: Sequence[int], runs: int, offset: int = 0) -> list[int]:
    """Return ops at whose first runs an order holds little, and the number of ops for the end.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included; first runs in the graph's order.
        runs: about how far apart, in positions of the order.
        offset: about where the first is; op 0 never is one.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = tuple(Op(f"{i}", "f", (i - 1,) if i else (), (i,)) for i in range(9))
    >>> chain = flatten(Graph(ops, tuple(Value(f"{i}", 1 + i % 3) for i in range(9))))
    >>> boundaries(chain, range(9), 3), boundaries(chain, range(9), 3, 2)
    ([1, 4, 7, 9], [2, 4, 7, 9])
    """
    n, positions, held = problem.n, Positions(problem, order), held_bytes(problem, order)
    first = [positions.first(o) for o in range(n)]
    found = [next((o for o in range(1, n) if first[o] >= offset), n)]
    while found[-1] < n and len(order) - first[found[-1]] > 1.5 * runs:
        last = found[-1]
        far = [o for o in range(last + 1, n) if first[o] - first[last] >= runs / 2]
        near = [o for o in far if first[o] - first[last] <= 1.5 * runs] or far[:1]
        if not near:
            break
        found.append(min(near, key=lambda o: (held[first[o]] - problem.own(o), o)))
    return found if found[-1] == n else [*found, n]


def _sweep(search: Search, runs: int, offset: int, deadline: float) -> None:
    """Solve stretches one after another where enough runs again; keep what they make together."""
    problem, order = search.problem, list(search.order or ())
    for first, stop in pairwise(boundaries(problem, order, runs, offset)):
        if search.over(deadline):
            break
        part = stretch(problem, order, first, stop)
        if part is None or part.first_seconds == 0.0:
            continue
        if part.repeated_seconds > STRETCH_WORTH * search.base:
            order = part.spliced(order, solve_stretch(search, part, deadline))
    search.take(order)


def solve_stretch(search: Search, part: Stretch, deadline: float = math.inf) -> list[int]:
    """Return the best order found of a stretch; its own, which must fit, if none is better.

    Args:
        search: whose budget holds.
        part: a stretch of an order that fits, in which something first runs that takes time.
        deadline: of ``time.monotonic``.
    """
    run = _StretchRun(search, part, deadline)
    for turn in range(STRETCH_ROUNDS):
        if run.done or not run.turn(relax=turn < STRETCH_RELAXED_ROUNDS):
            break
    near = run.near
    polish(near, target=run.gap / near.base, work=STRETCH_POLISH_WORK)
    assert near.order is not None, "a stretch begins with an order that fits"
    return near.order


class _StretchRun:
    """Cuts and bursts of one stretch, and what is known of it."""

    def __init__(self, search: Search, part: Stretch, deadline: float) -> None:
        self.part, self.gap = part, STRETCH_GAP * search.base
        self.near = Search(part.problem, search.budget, deadline=deadline)
        self.near.base = part.first_seconds
        self.near.order = list(part.order)
        self.near.extra = part.repeated_seconds
        self.cuts, self.again = [part.first], set[Burst]()

    @property
    def done(self) -> bool:
        """Say whether little is left to gain or the time is over."""
        return self.near.extra - self.near.bound <= self.gap or self.near.over()

    def turn(self, *, relax: bool) -> bool:
        """Solve a master; add cuts and bursts where its plan overshoots; say whether to go on."""
        near, problem = self.near, self.part.problem
        if (order := self._solve(near.budget, relax=relax)) is None:
            return False
        for aim in STRETCH_AIMS if relax else ():
            if self.done or self._solve(int(aim * near.budget), relax=True) is None:
                break
        first = self.part.first
        fresh = overshoots(problem, order, near.budget, self.cuts, repeated=False, first=first)
        runs = set(bursts(problem, order, near.budget, self.cuts, first=first)) - self.again
        if not fresh and not runs:
            fresh = overshoots(problem, order, near.budget, self.cuts, first=first)
        self.cuts, self.again = sorted({*self.cuts, *fresh}), self.again | runs
        return relax or bool(fresh or runs)

    def _solve(self, budget: int, *, relax: bool) -> list[int] | None:
        """Take in the plan of a master; return its order, made to fit or not."""
        near = self.near
        result = solve_master(
            self.part.problem,
            budget,
            self.cuts,
            bursts=self.again,
            relax=relax,
            gap=self.gap / 2,
            seconds=max(0.0, near.deadline - time.monotonic()),
            work=STRETCH_WORK,
            near=near.order,
            start=self.part.held,
        )
        if budget == near.budget and result.bound < math.inf:
            near.bound = max(near.bound, result.bound)
        if result.plan is None:
            return None
        order = _order_of(self.part, result.plan)
        near.offer(order)
        return order


def _order_of(part: Stretch, plan: CutPlan) -> list[int]:
    return [part.order[0], *order_from_plan(part.problem, plan)[part.first :]]
