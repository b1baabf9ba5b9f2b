"""The one seam to the linear and integer solver: sparse rows in, values and a bound out.

Knows HiGHS (called directly: building a hundred thousand columns as PuLP objects would take longer
than solving them). Knows nothing of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True)
class Result:
    """``x``: the best point, ``None`` if none found; ``bound``: proven, ``inf`` if infeasible.

    ``duals`` are the multipliers of the rows of a linear program solved to its end.
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
    highs = highspy.Highs()
    options: dict[str, float] = {"output_flag": False, "threads": 1, "random_seed": seed}
    options |= {"mip_rel_gap": 0.0, "mip_abs_gap": max(gap, 1e-9), "mip_allow_restart": False}
    if seconds < math.inf:
        options["time_limit"] = max(0.01, seconds)
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.passModel(_highs_lp(model, relax=relax))
    if start is not None and not relax:
        solution = highspy.HighsSolution()
        solution.col_value = start.tolist()
        highs.setSolution(solution)
    if checks is not None and not relax:
        highs.cbMipInterrupt.subscribe(_StopAfter(checks))
    highs.run()
    return _result(highs, relax=relax or not any(model.integer))


class _StopAfter:
    """Interrupt a search at its check number ``left + 1``."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, event: highspy.HighsCallbackEvent) -> None:
        self.left -= 1
        event.data_in.user_interrupt = self.left < 0


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


def _result(highs: highspy.Highs, *, relax: bool) -> Result:
    status, info = highs.getModelStatus(), highs.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Result(None, math.inf)
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    x = np.array(highs.getSolution().col_value) if feasible else None
    if relax:
        solved = status == highspy.HighsModelStatus.kOptimal
        duals = np.array(highs.getSolution().row_dual) if solved else None
        return Result(x, info.objective_function_value if solved else 0.0, duals)
    return Result(x, max(0.0, info.mip_dual_bound))
