"""Schedules for a little more memory, made to fit a little less: how good they are, quickly.

Values are given up where it overshoots and made again, which takes milliseconds; relaxed masters
tell what is lost at most. Knows no integer masters: those are for who wants less than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from planner.graphs import Graph, Schedule, schedule_from_order
from planner.solvers.api import Limits, Solution, Status, deadline_of
from planner.solvers.minimum_budget import proven_floor
from planner.solvers.model.problem import flatten
from planner.solvers.search.incumbent import Search
from planner.solvers.search.relaxed_masters import run_relaxed
from planner.solvers.search.time_cuts import tighten_cuts
from planner.solvers.tuning import LARGE_OPS


def tightened(
    graph: Graph, schedules: Iterable[Schedule], budget_bytes: int, limits: Limits
) -> Solution:
    """Return the quickest of some schedules as they are when made to fit a budget.

    Args:
        graph: the step.
        schedules: for about that much, their first runs in the graph's order.
        budget_bytes: what one may hold.
        limits: when to stop, and the gap that is good enough.

    >>> from planner.graphs import Op, Value, plain_schedule
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> found = tightened(g, [plain_schedule(g)], 3, Limits())
    >>> found.schedule.order, round(found.bound_seconds, 6)
    ((0, 1, 2, 0, 3), 9.0)
    """
    search = Search(flatten(graph), budget_bytes, deadline=deadline_of(limits))
    if proven_floor(graph) > budget_bytes:
        return Solution(Status.INFEASIBLE, None, math.inf, "")
    for schedule in schedules:
        search.offer(schedule.order)
    if search.problem.n > LARGE_OPS:
        close = limits.gap
        run_relaxed(search, target=close, enough=close, deadline=search.deadline, seed=limits.seed)
    else:
        tighten_cuts(search, limits)
    if search.bound == math.inf:
        return Solution(Status.INFEASIBLE, None, math.inf, "")
    bound = search.base + search.bound
    if search.order is None:
        return Solution(Status.UNKNOWN, None, bound, "")
    status = Status.OPTIMAL if search.gap <= limits.gap else Status.FEASIBLE
    return Solution(status, schedule_from_order(graph, search.order), bound, "")
