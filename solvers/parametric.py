"""A lower bound on the time of a step as a function of the budget, valid at every budget at once.

Relaxes the master of one cut (see ``solvers.master``) to a linear program. Only the right-hand side
of its memory row depends on the budget B:

    minimize c x   with   A x >= b,   m x <= B - own,   0 <= x <= 1

For any multipliers ``y >= 0``, ``z >= 0`` and every x that satisfies the rows at a budget B,

    c x  >=  c x - y (A x - b) - z (B - own - m x)  =  (c - y A + z m) x + y b + z own - z B

and the least of the right-hand side over the box is a constant minus ``z B``: a line that no
schedule passes below *at any budget*, whatever the multipliers are and however they were found. So
nothing here rests on a solver's tolerance. With the optimal multipliers of a budget the line
touches the relaxation's value there, which is convex in B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs import Graph
from solvers.base import floor_bytes
from solvers.lp import Model, minimize
from solvers.master import Window, windows
from solvers.problem import Problem, flatten, held_bytes


@dataclass(frozen=True, slots=True)
class Line:
    """At every budget a step needs at least these seconds more than running every op once.

    >>> Line(5.0, -0.5).at(4)
    3.0
    """

    extra_seconds: float
    slope: float

    def at(self, budget_bytes: float) -> float:
        """Return the bound at a budget; beyond the budget where it ends it is negative."""
        return self.extra_seconds + self.slope * budget_bytes


def supporting_line(
    problem: Problem, budget: int, cut: int, *, seconds: float = math.inf
) -> Line | None:
    """Return a line below the extra time of every schedule, tight near a budget.

    ``None`` if the relaxation has no solution at that budget or the seconds are over.

    >>> from graphs import Graph, Op, Value
    >>> from solvers.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> line = supporting_line(flatten(g), 3, cut=2)
    >>> [round(line.at(budget), 6) for budget in (3, 4, 5)]
    [1.0, 0.0, -1.0]
    """
    (frame,) = windows(problem, [cut], frozenset())
    rows = _Rows(problem, frame)
    duals = minimize(rows.model(budget), relax=True, seconds=seconds).duals
    return None if duals is None else rows.line(duals)


def quick_bound(graph: Graph, budget: int) -> float:
    """Return seconds that every schedule within a budget takes, ``inf`` if one op cannot fit.

    One linear program, at the moment that holds most when nothing is recomputed.

    >>> from graphs import Op, Value
    >>> g = Graph((Op("a", "f", (), (0,), 2.0),), (Value("a", 3),))
    >>> quick_bound(g, 3), quick_bound(g, 2)
    (2.0, inf)
    """
    if floor_bytes(graph) > budget:
        return math.inf
    problem = flatten(graph)
    held = held_bytes(problem, range(problem.n))
    if held.max(initial=0) <= budget:
        return graph.seconds
    line = supporting_line(problem, budget, int(held.argmax()))
    return graph.seconds + max(0.0, 0.0 if line is None else line.at(budget))


class _Rows:
    """The program of one cut; its last row is the memory row. Seconds and bytes are scaled."""

    def __init__(self, problem: Problem, frame: Window) -> None:
        self.p, self.frame, self.lp = problem, frame, Model()
        self.second = max(problem.seconds, default=0.0) or 1.0
        self.byte = float(max(problem.sizes, default=0) or 1)
        self.held = {v: self.lp.column(0.0) for v in frame.relevant}
        makers = dict.fromkeys(problem.maker[v] for v in frame.relevant)
        self.redone = {
            o: self.lp.column(problem.seconds[o] / self.second)
            for o in makers
            if problem.recomputable[o]
        }

    def model(self, budget: int) -> Model:
        """Add the rows for a budget."""
        for v in sorted(self.frame.need):
            columns = [self.held[v]] if v in self.p.inputs[self.frame.t] else self._supply(v)
            self.lp.row(columns, [1.0] * len(columns), low=1.0)
        for op, again in self.redone.items():
            for u in self.p.inputs[op]:
                columns = self._supply(u)
                self.lp.row([*columns, again], [1.0] * len(columns) + [-1.0], low=0.0)
        weights = [self.p.sizes[v] / self.byte for v in self.held]
        space = budget - self.p.own(self.frame.t)
        self.lp.row(list(self.held.values()), weights, high=space / self.byte)
        return self.lp

    def _supply(self, v: int) -> list[int]:
        again = self.redone.get(self.p.maker[v])
        return [self.held[v]] if again is None else [self.held[v], again]

    def line(self, duals: NDArray[np.float64]) -> Line:
        """Return the bound that any multipliers prove; those of the wrong sign count as zero."""
        y = np.maximum(duals, 0.0)
        y[-1] = min(duals[-1], 0.0)
        rows = np.repeat(np.arange(len(y)), np.diff(self.lp.start))
        prices = np.array(self.lp.cost)
        np.subtract.at(prices, np.array(self.lp.index, int), np.array(self.lp.value) * y[rows])
        constant = np.minimum(prices, 0.0).sum() + y[:-1] @ np.array(self.lp.low[:-1])
        slope = y[-1] / self.byte
        constant -= slope * self.p.own(self.frame.t)
        return Line(float(constant) * self.second, float(slope) * self.second)
