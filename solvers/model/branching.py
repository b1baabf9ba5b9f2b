"""Branch and bound for a bound, proved by multipliers at every leaf.

A relaxation is parted by columns that must be whole: at most 0 on the one side, at least 1 on the
other. Every point of the model whose columns are whole is on one of them, so the least of what is
proved on either side holds for all. What is proved on a side is what multipliers of the rows prove
between the ends that its columns have there (``bound_of``); of a side that has no point, the ray by
which the solver says so. So nothing rests on a tolerance: an answer of the solver that is wrong
makes the bound weaker, never wrong. Rows that hold for all whole points may be added on the way,
and serve everywhere. Knows HiGHS; knows nothing of graphs.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import highspy
import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.linear_program import (
    Model,
    Result,
    Row,
    add_rows,
    bound_of,
    open_highs,
)
from planner.solvers.tuning import (
    BRANCH_GAIN,
    BRANCH_ITERATIONS,
    BRANCH_PATIENCE,
    BRANCH_ROUNDS,
    BRANCH_TRIES,
    PATH_ROUNDS,
    RAY_LENGTHS,
)

Point = NDArray[np.float64]
Fixed = tuple[tuple[int, float], ...]
"""Columns, each with the whole number that it is."""


def branched(
    model: Model,
    violated: Callable[[Point], Sequence[Row]],
    choose: Callable[[Point], Sequence[int]],
    *,
    enough: float,
    work: float = math.inf,
    seconds: float = math.inf,
    seed: int = 0,
) -> Result:
    """Return a cost that no whole point of a model goes below, at most ``enough``.

    The point is that of the side that proves least, and most of its columns are whole.

    The side that proves least is parted next, by the column of which a few iterations say that it
    raises both sides most. It ends early where that gains next to nothing.

    Args:
        model: what to minimize, of columns between 0 and 1; it grows.
        violated: returns rows that hold for every whole point and that a point violates.
        choose: returns columns that are fractions at a point, the most promising first.
        enough: the bound at which to stop.
        work: what it may cost: iterations times the entries of the matrix.
        seconds: after which to stop, as the last resort.
        seed: of every random choice.

    >>> m = Model()
    >>> x, y = m.column(3.0, integer=True), m.column(2.0, integer=True)
    >>> m.row([x, y], [2.0, 2.0], low=1.0)
    >>> halves = lambda point: [c for c in (x, y) if 0.1 < point[c] < 0.9]
    >>> [round(branched(m, lambda x: [], halves, enough=e).bound, 6) for e in (0.5, 9.0)]
    [0.5, 2.0]
    """
    relaxation = _Relaxation(model, violated, work, time.monotonic() + seconds, seed)
    first = relaxation.tightened((), PATH_ROUNDS)
    sides: list[tuple[float, int, Fixed, Point | None]] = [(first.bound, 0, (), first.x)]
    number, proved = 0, [first.bound]
    while not (relaxation.spent or _stalled(proved, enough)):
        bound, _, fixed, x = sides[0]
        columns = choose(x)[:BRANCH_TRIES] if x is not None else ()
        if not columns:
            break
        tried = [relaxation.parted(fixed, column) for column in columns]
        gains = [[max(1e-6, min(side.bound, enough) - bound) for side in both] for both in tried]
        best = max(range(len(tried)), key=lambda i: math.prod(gains[i]))
        heapq.heappop(sides)
        for side in tried[best]:
            found = side
            if side.bound < enough:
                found = relaxation.tightened(side.fixed, BRANCH_ROUNDS)
            number += 1
            least = max(bound, side.bound, found.bound)
            heapq.heappush(sides, (least, number, side.fixed, found.x))
        proved.append(sides[0][0])
    return Result(sides[0][3], min(enough, proved[-1]))


def _stalled(proved: Sequence[float], enough: float) -> bool:
    """Say whether what is proved is enough, or the last sides parted gained next to nothing."""
    gain = proved[-1] - proved[max(0, len(proved) - 1 - BRANCH_PATIENCE)]
    stalled = len(proved) > BRANCH_PATIENCE and gain < BRANCH_GAIN * (enough - proved[-1])
    return stalled or proved[-1] >= enough


@dataclass(frozen=True)
class _Side:
    """A side with what is proved there; ``x`` is a point, ``None`` if there is none."""

    fixed: Fixed
    bound: float
    x: Point | None = field(compare=False)


class _Relaxation:
    """The relaxation, solved again and again from where it ended last."""

    def __init__(
        self,
        model: Model,
        violated: Callable[[Point], Sequence[Row]],
        work: float,
        until: float,
        seed: int,
    ) -> None:
        self.model, self.violated, self.work, self.until = model, violated, work, until
        self.highs = open_highs(model, relax=True, seconds=until - time.monotonic(), seed=seed)
        self.lower, self.upper = np.array(model.lower), np.array(model.upper)

    @property
    def spent(self) -> bool:
        """Say whether the effort or the time is over."""
        return self.work <= 0 or time.monotonic() > self.until

    def parted(self, fixed: Fixed, column: int) -> list[_Side]:
        """Return what a few iterations prove on both sides of a column."""
        sides = [(*fixed, (column, whole)) for whole in (0.0, 1.0)]
        return [self._solved(side, BRANCH_ITERATIONS) for side in sides]

    def tightened(self, fixed: Fixed, rounds: int) -> _Side:
        """Return what is proved on a side with more and more rows."""
        side = self._solved(fixed)
        for _ in range(rounds):
            if side.x is None or self.spent or not (rows := self.violated(side.x)):
                break
            add_rows(self.model, self.highs, rows)
            after = self._solved(fixed)
            side = replace(after, bound=max(side.bound, after.bound))
        return side

    def _solved(self, fixed: Fixed, iterations: int | None = None) -> _Side:
        lower, upper = np.array(self.model.lower), np.array(self.model.upper)
        for column, whole in fixed:
            lower[column] = upper[column] = whole
        self._move(lower, upper)
        limit = highspy.kHighsIInf if iterations is None else iterations
        self.highs.setOptionValue("simplex_iteration_limit", limit)
        self.highs.setOptionValue(
            "time_limit", self.highs.getRunTime() + max(0.01, self.until - time.monotonic())
        )
        self.highs.run()
        spent = 1 + max(0, self.highs.getInfo().simplex_iteration_count)
        self.work -= spent * len(self.model.index)
        between = replace(self.model, lower=lower.tolist(), upper=upper.tolist())
        infeasible = self.highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible
        bound = max(bound_of(between, y) for y in self._multipliers(infeasible=infeasible))
        solved = self.highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return _Side(fixed, bound, np.array(self.highs.getSolution().col_value) if solved else None)

    def _move(self, lower: Point, upper: Point) -> None:
        """Give columns other ends than they have."""
        moved = np.flatnonzero((lower != self.lower) | (upper != self.upper)).astype(np.int32)
        self.highs.changeColsBounds(len(moved), moved, lower[moved], upper[moved])
        self.lower, self.upper = lower, upper

    def _multipliers(self, *, infeasible: bool) -> list[Point]:
        """Return multipliers that prove something: those of the end, or a ray far enough along."""
        rows = len(self.model.low)
        found = [np.zeros(rows)]
        if infeasible:
            _, known, ray = self.highs.getDualRay()
            directions = [np.array(ray), -np.array(ray)] if known else []
        else:
            directions = [np.array(self.highs.getSolution().row_dual)]
        lengths = RAY_LENGTHS if infeasible else (1.0,)
        for y in (y * times for y in directions if len(y) == rows for times in lengths):
            if np.isfinite(y).all():
                found.append(y)
        return found
