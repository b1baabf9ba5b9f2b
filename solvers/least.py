"""The least budget: the smallest known to work, with a schedule, and a floor that is proven.

Knows how to try ever larger budgets from the floor up. That nothing between floor and least works
is not proven: the question is PSPACE-hard even where recomputing costs nothing (pebbling).
"""

from __future__ import annotations

from dataclasses import dataclass

from graphs import Graph, Schedule, schedule_from_order
from solvers.base import Limits, floor_bytes
from solvers.build import order_from_plan
from solvers.master import solve_master
from solvers.overshoot import overshoots
from solvers.problem import Problem, flatten, held_bytes
from solvers.repair import PATIENCES, fit

ROUNDS = 2
"""How often a budget at which the given order cannot be repaired is tried again with more cuts."""
GUIDED = 1000
"""Up to so many ops masters guide the search; above, repairing the given order must do."""


@dataclass(frozen=True)
class MinimumBudget:
    """``schedule`` attains ``least_bytes``; no schedule needs less than ``floor_bytes``."""

    least_bytes: int
    floor_bytes: int
    schedule: Schedule


def minimum_budget(graph: Graph, limits: Limits | None = None) -> MinimumBudget:
    """Return the least budget found to work and the proven floor.

    >>> from graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (1,), (2,)),
    ...        Op("d", "f", (0, 2), (3,)))
    >>> g = Graph(ops, tuple(Value(x, 1) for x in "abcd"))
    >>> found = minimum_budget(g)
    >>> found.least_bytes, found.floor_bytes
    (3, 3)
    """
    del limits  # the search is short; its steps are counted, not timed
    problem, floor = flatten(graph), proven_floor(graph)
    order = least_order(problem, floor)
    least = int(held_bytes(problem, order).max(initial=graph.resident_bytes))
    return MinimumBudget(least, floor, schedule_from_order(graph, order))


def proven_floor(graph: Graph) -> int:
    """Return bytes that every schedule in the graph's order holds at some moment.

    Each op needs its own; and while it first runs, what cannot be made again is live if a later
    op reads it.
    """
    problem = flatten(graph)
    floor, forced = floor_bytes(graph), set[int]()
    for t in range(problem.n):
        forced = {v for v in forced if problem.uses[v][-1] >= t}
        held = sum(problem.sizes[v] for v in forced.union(problem.inputs[t]))
        floor = max(floor, problem.own(t) + held)
        if not problem.recomputable[t]:
            forced.update(v for v in problem.outputs[t] if problem.uses[v])
    return floor


def least_order(problem: Problem, floor: int) -> list[int]:
    """Return the order of least peak found, trying budgets from the floor up, then closing in."""
    best = list(range(problem.n))
    top = int(held_bytes(problem, best).max(initial=floor))
    low, step = floor - 1, max(1, (top - floor) // 256)
    trial = floor
    while trial < top:
        if (order := try_budget(problem, trial)) is not None:
            best, top = order, int(held_bytes(problem, order).max())
            break
        low, trial, step = trial, trial + step, 2 * step
    tolerance = floor // 1000
    while top - low > 1 + tolerance:
        middle = (low + top) // 2
        if (order := try_budget(problem, middle)) is not None:
            best, top = order, int(held_bytes(problem, order).max())
        else:
            low = middle
    return best


def try_budget(problem: Problem, budget: int) -> list[int] | None:
    """Return an order that fits a budget: the given one repaired, or a master's plan repaired."""
    order = list(range(problem.n))
    cuts = [int(held_bytes(problem, order).argmax())]
    for _ in range(ROUNDS):
        for patience in PATIENCES:
            if (fitted := fit(problem, order, budget, patience=patience)) is not None:
                return fitted
        if problem.n > GUIDED:
            return None
        plan = solve_master(problem, budget, cuts, relax=True).plan
        if plan is None:
            return None
        order = order_from_plan(problem, plan)
        cuts = sorted({*cuts, *overshoots(problem, order, budget, cuts)})
    return None
