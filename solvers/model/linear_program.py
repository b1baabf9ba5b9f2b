"""The one seam to the linear and integer solver: sparse rows in, values and a bound out.

Knows HiGHS (called directly: building a hundred thousand columns as PuLP objects would take longer
than solving them). Knows nothing of graphs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import highspy
import numpy as np
from numpy.typing import NDArray

from planner.solvers.tuning import LEAST_CHECKS, STALLED_GAIN, STALLED_ROUNDS


@dataclass
class Model:
    """Columns in [lower, upper] with costs to minimize, and rows ``low <= a x <= high``."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def column(
        self, cost: float, *, lower: float = 0.0, upper: float = 1.0, integer: bool = False
    ) -> int:
        """Add a column and return its index.

        Args:
            cost: of one unit.
            lower: the least it may be.
            upper: the most it may be.
            integer: whether it must be whole.
        """
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.cost) - 1

    def row(
        self,
        index: Sequence[int],
        value: Sequence[float],
        *,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        """Add a row.

        Args:
            index: of its columns.
            value: their coefficients.
            low: the least of the row.
            high: the most of the row.
        """
        self.index += index
        self.value += value
        self.start.append(len(self.index))
        self.low.append(low)
        self.high.append(high)

    def checks_for(self, work: int) -> int:
        """Return after how many checks an integer search ends.

        Args:
            work: what it may cost: its checks times the entries of the matrix.
        """
        return max(LEAST_CHECKS, work // max(1, len(self.index)))


@dataclass(frozen=True)
class Row:
    """A row ``low <= a x`` over some columns, each named once."""

    index: tuple[int, ...]
    value: tuple[float, ...]
    low: float


@dataclass(frozen=True)
class Result:
    """``x``: the best point, ``None`` if none found; ``bound``: proven, ``inf`` if infeasible.

    The bound of a linear program is what its multipliers prove (``bound_of``), also where time cut
    it off, and it is infeasible if a ray of them proves that; that of an integer search is as good
    as the solver's tolerances. ``duals`` are the multipliers of the rows of a linear program solved
    to its end.
    """

    x: NDArray[np.float64] | None
    bound: float
    duals: NDArray[np.float64] | None = None


def minimize(
    model: Model,
    *,
    relax: bool = False,
    gap: float = 0.0,
    seconds: float = math.inf,
    checks: int | None = None,
    start: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Result:
    """Minimize a model. An integer search never starts over: that costs more than it brings here.

    Args:
        model: what to minimize.
        relax: let integer columns be fractional.
        gap: between cost and bound, at which to stop, in the unit of the costs.
        seconds: after which to stop, as the last resort.
        checks: after how many an integer search ends; HiGHS makes them at the same points of the
            search whatever the machine's load.
        start: an order to begin with, by default the given one.
        seed: of every random choice.

    >>> m = Model()
    >>> x, y = m.column(3.0, integer=True), m.column(2.0, integer=True)
    >>> m.row([x, y], [1.0, 1.0], low=0.5)
    >>> result = minimize(m)
    >>> result.bound, result.x.tolist()
    (2.0, [0.0, 1.0])
    """
    highs = open_highs(model, relax=relax, gap=gap, seconds=seconds, seed=seed)
    if start is not None and not relax:
        solution = highspy.HighsSolution()
        solution.col_value = start.tolist()
        highs.setSolution(solution)
    if checks is not None and not relax:
        highs.cbMipInterrupt.subscribe(_StopAfter(checks))
    highs.run()
    if relax or not any(model.integer):
        return _relaxed(highs, model)
    return _integer(highs)


def tighten(
    model: Model,
    violated: Callable[[NDArray[np.float64]], Sequence[Row]],
    *,
    rounds: int,
    seconds: float = math.inf,
    seed: int = 0,
) -> Result:
    """Minimize the relaxation of a model with more and more rows; the model keeps them.

    Each round goes on from the last one's basis. They end before that where ``STALLED_ROUNDS`` of
    them brought next to nothing. The bound is the best of all rounds.

    Args:
        model: what to minimize; it grows.
        violated: returns rows of the model that a point violates, none if there are no more.
        rounds: how often rows may be added.
        seconds: after which to stop, as the last resort.
        seed: of every random choice.

    >>> m = Model()
    >>> x, y = m.column(3.0), m.column(2.0)
    >>> row = Row((x, y), (1.0, 1.0), 0.5)
    >>> round(tighten(m, lambda point: [row] if sum(point) < 0.49 else [], rounds=3).bound, 9)
    1.0
    >>> len(m.low)
    1
    """
    until = time.monotonic() + seconds
    highs, bounds = open_highs(model, relax=True, seconds=seconds, seed=seed), list[float]()
    while True:
        highs.run()
        result = _relaxed(highs, model)
        bounds.append(result.bound)
        stalled = bounds[-1] <= (1 + STALLED_GAIN) * bounds[-1 - STALLED_ROUNDS :][0]
        over = len(bounds) > rounds or (stalled and len(bounds) > STALLED_ROUNDS)
        if result.x is None or result.duals is None or over or time.monotonic() > until:
            break
        rows = violated(result.x)
        if not rows:
            break
        add_rows(model, highs, rows)
        if seconds < math.inf:  # the clock of HiGHS goes on from round to round
            spent = highs.getRunTime()
            highs.setOptionValue("time_limit", spent + max(0.01, until - time.monotonic()))
    return Result(result.x, max(bounds), result.duals)


def bound_of(model: Model, duals: NDArray[np.float64]) -> float:
    """Return a cost that no feasible point goes below: what multipliers of the rows prove.

    Any multipliers prove one, however they were found: for ``y`` of the right signs every feasible
    ``x`` costs ``c x >= y b + (c - y A) x``, and the least of that over the columns' ends, which
    must be finite, is taken. Multipliers of the wrong sign count as zero. What rounding may have
    done is bounded and taken off.

    Args:
        model: whose rows and columns count; integers may be fractional.
        duals: a multiplier for each row, positive for ``low``, negative for ``high``.

    >>> m = Model()
    >>> x, y = m.column(3.0), m.column(2.0)
    >>> m.row([x, y], [1.0, 1.0], low=0.5)
    >>> [round(bound_of(m, np.array([y])), 9) for y in (2.0, 7.0, -1.0)]
    [1.0, -5.5, 0.0]
    """
    low, high = np.array(model.low), np.array(model.high)
    y = np.where(np.isfinite(low), duals, np.minimum(duals, 0.0))
    y = np.where(np.isfinite(high), y, np.maximum(y, 0.0))
    sides = np.where(y > 0, low, high)[y != 0]
    return below([*(y[y != 0] * sides), *least_terms(model, y)])


def least_terms(model: Model, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each column at most the least that its reduced cost adds between its ends.

    Args:
        model: whose columns these are.
        y: a multiplier for each row.
    """
    index, cost = np.array(model.index, dtype=np.int64), np.array(model.cost)
    terms = np.array(model.value) * np.repeat(y, np.diff(model.start))
    prices, sizes = cost.copy(), np.abs(cost)
    np.subtract.at(prices, index, terms)
    np.add.at(sizes, index, np.abs(terms))
    error = (np.bincount(index, minlength=len(cost)) + 3) * np.finfo(float).eps * sizes
    low, high = np.array(model.lower), np.array(model.upper)
    least: NDArray[np.float64] = np.minimum((prices - error) * low, (prices - error) * high)
    for corner in ((prices + error) * low, (prices + error) * high):
        np.minimum(least, corner, out=least)
    return least


def below(products: Sequence[float]) -> float:
    """Return no more than the sum of products, each rounded once.

    >>> below([0.1] * 10) < 1.0
    True
    """
    slack = 2 * np.finfo(float).eps * math.fsum(map(abs, products))
    return float(math.fsum(products) - slack)


class _StopAfter:
    """Interrupt a search at its check number ``left + 1``."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, event: highspy.HighsCallbackEvent) -> None:
        self.left -= 1
        event.data_in.user_interrupt = self.left < 0


def open_highs(
    model: Model, *, relax: bool, gap: float = 0.0, seconds: float, seed: int
) -> highspy.Highs:
    """Return the solver with a model in it.

    Args:
        model: which goes on to belong to the caller.
        relax, gap, seconds, seed: as for ``minimize``.
    """
    highs = highspy.Highs()
    options: dict[str, float] = {"output_flag": False, "threads": 1, "random_seed": seed}
    options |= {"mip_rel_gap": 0.0, "mip_abs_gap": max(gap, 1e-9), "mip_allow_restart": False}
    if seconds < math.inf:
        options["time_limit"] = max(0.01, seconds)
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.passModel(_highs_lp(model, relax=relax))
    return highs


def add_rows(model: Model, highs: highspy.Highs, rows: Sequence[Row]) -> None:
    """Add rows to a model and to the solver that it is in.

    Args:
        model: which grows.
        highs: the solver; it goes on from its last basis.
        rows: what to add.
    """
    for row in rows:
        model.row(row.index, row.value, low=row.low)
        index, value = np.array(row.index, dtype=np.int32), np.array(row.value)
        highs.addRow(row.low, highspy.kHighsInf, len(index), index, value)


def _highs_lp(model: Model, *, relax: bool) -> highspy.HighsLp:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(model.cost), len(model.low)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = map(
        np.array, (model.cost, model.lower, model.upper)
    )
    lp.row_lower_, lp.row_upper_ = np.array(model.low), np.array(model.high)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array(model.start, dtype=np.int32)
    lp.a_matrix_.index_ = np.array(model.index, dtype=np.int32)
    lp.a_matrix_.value_ = np.array(model.value, dtype=float)
    if not relax:
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if i else kinds.kContinuous for i in model.integer]
    return lp


def _relaxed(highs: highspy.Highs, model: Model) -> Result:
    """Read the end of a linear program; cut off, it still proves what its multipliers prove."""
    status, solution = highs.getModelStatus(), highs.getSolution()
    if status == highspy.HighsModelStatus.kInfeasible and _empty(highs, model):
        return Result(None, math.inf)
    solved = status == highspy.HighsModelStatus.kOptimal
    duals = np.array(solution.row_dual)
    if len(duals) != len(model.low) or not np.isfinite(duals).all():
        duals = np.zeros(len(model.low))
    x = np.array(solution.col_value) if solved or _feasible(highs) else None
    return Result(x, bound_of(model, duals), duals if solved else None)


def _empty(highs: highspy.Highs, model: Model) -> bool:
    """Say whether a ray of multipliers proves that no point satisfies the rows (Farkas' lemma)."""
    _, known, ray = highs.getDualRay()
    if not known or len(ray) != len(model.low):
        return False
    free = replace(model, cost=[0.0] * len(model.cost))
    return any(bound_of(free, sign * np.array(ray)) > 0 for sign in (1.0, -1.0))


def _integer(highs: highspy.Highs) -> Result:
    if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return Result(None, math.inf)
    x = np.array(highs.getSolution().col_value) if _feasible(highs) else None
    return Result(x, max(0.0, highs.getInfo().mip_dual_bound))


def _feasible(highs: highspy.Highs) -> bool:
    status = highs.getInfo().primal_solution_status
    return bool(status == highspy.SolutionStatus.kSolutionStatusFeasible)
