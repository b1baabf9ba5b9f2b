"""Integer masters near a plan that is known: most of what it holds and runs again stays as it is.

What the plan and the relaxation agree on is likely right (relaxation induced neighbourhoods, Danna,
Rothberg and Le Pape 2005), so it is fixed, but for some ops of which everything is free. What is
left is small enough to solve within a second or two. No bound comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.linear_program import minimize
from planner.solvers.model.master_points import CutPlan, exact_plan, point_of
from planner.solvers.model.master_program import Burst, MasterProgram
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem
from planner.solvers.model.windows import windows
from planner.solvers.tuning import NEAR_AGREE


@dataclass(frozen=True)
class NearPlan:
    """The best plan found near another, ``None`` if none is better; ``closed``: none is."""

    plan: CutPlan | None
    closed: bool


class NearPlans:
    """The master at some cuts, to be solved near known plans."""

    def __init__(
        self,
        problem: Problem,
        budget: int,
        cuts: Sequence[int],
        bursts: Collection[Burst],
        *,
        seconds: float = math.inf,
        seed: int = 0,
    ) -> None:
        """Build and relax it.

        Args:
            problem: the step, flattened.
            budget: in bytes.
            cuts, bursts: as for ``solve_master``.
            seconds: after which to do without the relaxation.
            seed: of every random choice.
        """
        none = frozenset[int]()
        self._master = MasterProgram(problem, windows(problem, cuts, none), none, none)
        self._model = self._master.model(budget, bursts)
        self._integer = np.array(self._model.integer, dtype=bool)
        self._relaxed = minimize(self._model, relax=True, seconds=seconds, seed=seed).x
        self._op = _ops_of_columns(self._master, len(self._integer))
        self.ops = max((op for redone in self._master.redone for op in redone), default=0) + 1
        """The ops from this one on never run again."""

    def best(
        self,
        order: Sequence[int],
        free: Collection[int],
        *,
        gap: float = 0.0,
        seconds: float = math.inf,
        work: int,
        seed: int = 0,
    ) -> NearPlan:
        """Solve it near an order that fits and whose first runs are the graph's.

        Args:
            order: the ops to run, repetitions included.
            free: ops of which anything may change.
            gap: seconds of the step that are not worth looking for.
            seconds: after which to stop.
            work: what the search may cost, as for ``solve_master``.
            seed: of every random choice.

        >>> from planner.graphs import Graph, Op, Value
        >>> from planner.solvers.model.problem import flatten
        >>> ops = (Op("a", "f", (), (0,), 5.0), Op("b", "f", (0,), (1,), 1.0),
        ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 1, 2), (3,), 1.0))
        >>> problem = flatten(Graph(ops, tuple(Value(x, 1) for x in "abcd")))
        >>> near = NearPlans(problem, 4, [2], ())
        >>> dear = [0, 1, 2, 0, 3]  # a runs twice, and need not
        >>> near.best(dear, {0}, work=10**6).plan is None, near.best(dear, {0}, work=10**6).closed
        (False, True)
        """
        model, master = self._model, self._master
        point = point_of(master, Positions(master.problem, order), len(model.cost))
        agreed = np.abs(point - self._relaxation(point)) < NEAR_AGREE
        fixed = self._integer & agreed & ~np.isin(self._op, list(free))
        lower, upper = np.array(model.lower), np.array(model.upper)
        lower[fixed] = upper[fixed] = point[fixed]
        found = minimize(
            replace(model, lower=lower.tolist(), upper=upper.tolist()),
            gap=gap / master.unit,
            seconds=seconds,
            checks=model.checks_for(work),
            start=point,
            seed=seed,
        )
        known = float(np.dot(model.cost, point))
        least = math.inf if found.x is None else float(np.dot(model.cost, found.x))
        slack = gap / master.unit + NEAR_AGREE
        plan = None if least >= known - slack or found.x is None else exact_plan(master, found.x)
        return NearPlan(plan, found.bound >= min(least, known) - slack)

    def _relaxation(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        return point if self._relaxed is None else self._relaxed


def _ops_of_columns(master: MasterProgram, columns: int) -> NDArray[np.int64]:
    """Return for each column the op that it is a run of, or that makes what it holds."""
    found = np.zeros(columns, dtype=np.int64)
    for values in (*master.held, *master.through.values()):
        for v, column in values.items():
            found[column] = master.problem.maker[v]
    for ops in (*master.redone, *master.ever):
        for op, column in ops.items():
            found[column] = op
    for k, column in master.own_again.items():
        found[column] = master.frames[k].t
    return found
