"""A lower bound on the time of a step as a function of the budget, valid at every budget at once.

Relaxes the master of one cut (see ``solvers.model.master``) to a linear program. Only the
right-hand side of its memory row depends on the budget B:

    minimize c x   with   A x >= b,   m x <= B - own,   l <= x <= 1

For any multipliers ``y >= 0``, ``z >= 0`` and every x that satisfies the rows at a budget B,

    c x  >=  c x - y (A x - b) - z (B - own - m x)  =  (c - y A + z m) x + y b + z own - z B

where l is 1 for what the cut's op reads, else 0. The least of the right-hand side over the box is a
constant minus ``z B``: a line that no schedule passes below *at any budget*, whatever the
multipliers are and however they were found. So nothing here rests on a solver's tolerance. With the
optimal multipliers of a budget the line touches the relaxation's value there, which is convex in B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graphs import Graph
from planner.solvers.api import floor_bytes
from planner.solvers.model.linear_program import below, least_terms, minimize
from planner.solvers.model.master import OneCut, one_cut
from planner.solvers.model.problem import Problem, flatten, held_bytes


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

    Args:
        problem: the step, flattened.
        budget: in bytes.
        cut: the op at whose first run memory is counted.
        seconds: after which to stop.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> line = supporting_line(flatten(g), 3, cut=2)
    >>> [round(line.at(budget), 6) + 0 for budget in (3, 4, 5)]
    [1.0, 0.0, -1.0]
    """
    program = one_cut(problem, budget, cut)
    duals = minimize(program.model, relax=True, seconds=seconds).duals
    return None if duals is None else line_below(program, duals)


def quick_bound(graph: Graph, budget: int) -> float:
    """Return seconds that every schedule within a budget takes, ``inf`` if one op cannot fit.

    One linear program, at the moment that holds most when nothing is recomputed.

    >>> from planner.graphs import Op, Value
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


def line_below(program: OneCut, duals: NDArray[np.float64]) -> Line:
    """Return the bound that any multipliers prove; those of the wrong sign count as zero."""
    model = program.model
    y = np.maximum(duals, 0.0)
    y[-1] = min(duals[-1], 0.0)
    slope = y[-1] / program.byte
    parts = [*least_terms(model, y), *(y[:-1] * model.low[:-1]), -slope * program.own_bytes]
    return Line(below(parts) * program.second, float(slope) * program.second)
