"""The least time as a function of the budget: points that are attained, and what is proved between.

Let f(B) be the least time of a schedule within a budget B whose first runs follow the graph's
order. What fits B fits every larger budget, so f decreases: a bound proved at one budget holds for
every smaller one, and what was found at one budget serves every larger one. The bounds at the
points make a staircase; ``solvers.bounds.parametric`` adds lines that hold at every budget. Their
maximum is the envelope, valid at every budget, between the points, too. (f itself need not be
convex; the staircase may rise above the convex part of the envelope, where integrality costs
something.)
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from planner.graphs import Graph, Schedule, plain_schedule, schedule_from_order, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import Limits, Status, deadline_of, solve
from planner.solvers.bounds.parametric import Line, supporting_line
from planner.solvers.minimum_budget import minimum_budget
from planner.solvers.model.overshoot import overshoots
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import (
    LEAST_SHARE,
    OTHER_LINE_CUTS,
    POINT_GAP,
    POINTS_SHARE,
    STEEPNESS,
    WORTH_LINES_GAP,
    WORTH_NEIGHBOURS_GAP,
)


@dataclass(frozen=True)
class Point:
    """A budget, the best schedule known within it, and the least time that is proved for it."""

    budget_bytes: int
    peak_bytes: int
    seconds: float
    bound_seconds: float
    schedule: Schedule


@dataclass(frozen=True)
class Frontier:
    """Points by ascending budget, and lines that bound the extra time at every budget.

    No schedule fits less than ``floor_bytes``. Each point is at least as fast as those before it.
    """

    points: tuple[Point, ...]
    lines: tuple[Line, ...]
    floor_bytes: int
    plain_seconds: float

    def at(self, budget_bytes: float) -> Point | None:
        """Return the best point within a budget, ``None`` if the least budget is above it."""
        found = bisect_right([p.budget_bytes for p in self.points], budget_bytes)
        return self.points[found - 1] if found else None

    def bound_seconds(self, budget_bytes: float) -> float:
        """Return seconds that every schedule within a budget takes, ``inf`` if there is none."""
        if budget_bytes < self.floor_bytes:
            return math.inf
        above = bisect_left([p.budget_bytes for p in self.points], budget_bytes)
        stairs = [p.bound_seconds for p in self.points[above : above + 1]]
        extra = max((line.at(budget_bytes) for line in self.lines), default=0.0)
        return max(self.plain_seconds, *stairs, self.plain_seconds + extra)


def frontier(graph: Graph, points: int = 20, limits: Limits | None = None) -> Frontier:
    """Solve at budgets from the least known to work to what plain training needs.

    Half of ``limits.seconds`` is for the points, an equal part for each; the rest is for the least
    budget and for what they learn from each other. What earlier points leave over is not used, so
    that a hard point does not depend on how fast the easy ones were.

    Args:
        graph: the step.
        points: how many budgets.
        limits: when to stop.

    Raises:
        ValueError: fewer than two points.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> found = frontier(g, points=2)
    >>> [(p.budget_bytes, p.seconds, p.bound_seconds) for p in found.points]
    [(3, 9.0, 9.0), (4, 8.0, 8.0)]
    >>> found.bound_seconds(2), round(found.bound_seconds(3.5), 6), found.bound_seconds(99)
    (inf, 8.5, 8.0)
    """
    if points < 2:
        raise ValueError(f"{points} points make no curve: ask for 2 or more")
    limits = limits or Limits()
    deadline = deadline_of(limits)
    gap = max(limits.gap, POINT_GAP)
    share = replace(limits, gap=gap, seconds=POINTS_SHARE * limits.seconds / points)
    least = minimum_budget(graph, limits=replace(limits, seconds=LEAST_SHARE * limits.seconds))
    budgets = spaced(least.least_bytes, simulate(graph, plain_schedule(graph)).peak_bytes, points)
    found = solved_at(graph, budgets, least.schedule, share, deadline=deadline)
    until = min(deadline, time.monotonic() + share.seconds)
    return _assembled(graph, found, (), least.floor_bytes, until)


def solved_at(
    graph: Graph,
    budgets: Iterable[int],
    fallback: Schedule,
    limits: Limits,
    *,
    deadline: float = math.inf,
) -> list[Point]:
    """Solve at each budget, and let every point try its neighbours' schedules.

    Where no time is left a point takes the fallback, and nothing is proved of it.

    Args:
        graph: the step.
        budgets: in bytes, ascending; the fallback fits each.
        fallback: a schedule whose first runs keep the graph's order.
        limits: for each budget.
        deadline: of ``time.monotonic``, for all of them.

    >>> from planner.graphs import Op, Value
    >>> g = Graph((Op("a", "f", (), (0,), 1.0),), (Value("a", 3),))
    >>> [(p.budget_bytes, p.seconds) for p in solved_at(g, [3, 4], plain_schedule(g), Limits())]
    [(3, 1.0), (4, 1.0)]
    """
    found, longest = list[Point](), 0.0
    for budget in budgets:
        begin = time.monotonic()
        if begin + longest > deadline:
            found.append(_point(graph, budget, fallback, graph.seconds))
            continue
        left = replace(limits, seconds=min(limits.seconds, deadline - begin))
        found.append(_solved(graph, budget, fallback, left))
        longest = max(longest, time.monotonic() - begin - left.seconds)
    return _improved(graph, found, deadline)


def refined(graph: Graph, known: Frontier, budgets: Iterable[int], limits: Limits) -> Frontier:
    """Return a frontier with more points; ``limits`` are for each. Budgets below all are left out.

    Args:
        graph: the step.
        known: what is to be refined.
        budgets: in bytes.
        limits: when to stop.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 20 if x == "b" else 10) for x in "abcd"))
    >>> [p.budget_bytes for p in refined(g, frontier(g, points=2), [35, 1], Limits()).points]
    [30, 35, 40]
    """
    fresh = [
        _solved(graph, budget, point.schedule, limits)
        for budget in budgets
        if (point := known.at(budget)) is not None and point.budget_bytes != budget
    ]
    points = sorted((*known.points, *fresh), key=lambda p: p.budget_bytes)
    improved = _improved(graph, points)
    until = time.monotonic() + limits.seconds
    return _assembled(graph, improved, known.lines, known.floor_bytes, until)


def offered(
    graph: Graph, known: Frontier, schedules: Iterable[Schedule], host: HostTier | None = None
) -> Frontier:
    """Return a frontier none of whose points is slower than a schedule that fits it.

    What is proved stays: schedules whose first runs leave the graph's order are passed over.

    Args:
        graph: the step.
        known: what was found before.
        schedules: of the graph, found by whatever means; the host has room for what they move.
        host: where they move values to.

    >>> found = frontier(g := Graph((), ()), points=2)
    >>> offered(g, found, [plain_schedule(g)]) == found
    True
    """
    rates, points = {} if host is None else host.rates, list(known.points)
    for schedule in filter(_keeps_order, schedules):
        trace = simulate(graph, schedule, link_bytes_per_second=rates)
        for i, p in enumerate(points):
            if trace.peak_bytes <= p.budget_bytes and trace.seconds < p.seconds:
                bound = min(p.bound_seconds, trace.seconds)
                points[i] = Point(p.budget_bytes, trace.peak_bytes, trace.seconds, bound, schedule)
    return replace(known, points=tuple(points))


def _assembled(
    graph: Graph, points: list[Point], lines: tuple[Line, ...], floor: int, deadline: float
) -> Frontier:
    """Let the points share what was proved at each; draw lines if there are none."""
    lines = lines or _lines(graph, points, deadline)
    return bounded(Frontier(tuple(points), lines, floor, graph.seconds))


def spaced(least: int, most: int, points: int) -> list[int]:
    """Return budgets from end to end, closer together at the least, where the curve is steep.

    Args:
        least: the smallest, in bytes.
        most: how many at most.
        points: how many budgets.

    >>> spaced(0, 1000, 5), spaced(5, 5, 4), spaced(1, 3, 20)
    ([0, 125, 353, 649, 1000], [5], [1, 2, 3])
    """
    shares = [(i / (points - 1)) ** STEEPNESS for i in range(points)]
    return sorted({least + int((most - least) * share) for share in shares})


def _solved(graph: Graph, budget: int, fallback: Schedule, limits: Limits) -> Point:
    """Solve at one budget; the fallback fits, too, and is taken if nothing else is in order."""
    solution = solve(graph, budget, limits=replace(limits, reorder=False))
    assert solution.status is not Status.INFEASIBLE, "a schedule is known to fit"
    found = solution.schedule
    schedule = found if found is not None and _keeps_order(found) else fallback
    return _point(graph, budget, schedule, solution.bound_seconds)


def _keeps_order(schedule: Schedule) -> bool:
    """Say whether first runs follow the graph's order, which is what the envelope is for."""
    first = list(dict.fromkeys(schedule.order))
    return first == sorted(first)


def _point(graph: Graph, budget: int, schedule: Schedule, bound: float) -> Point:
    trace = simulate(graph, schedule)
    return Point(budget, trace.peak_bytes, trace.seconds, min(bound, trace.seconds), schedule)


def _lines(graph: Graph, points: Sequence[Point], deadline: float) -> tuple[Line, ...]:
    """Draw a line at every budget: at the fullest moment, and where a gap is left at others, too.

    A budget at which plain training fits needs none: nothing is proved there but zero.
    """
    problem = flatten(graph)
    order = range(problem.n)
    held = held_bytes(problem, order)
    first = [int(held.argmax())] if problem.n else []
    others = overshoots(problem, order, points[0].budget_bytes, first, most=OTHER_LINE_CUTS)
    found: list[Line | None] = []
    for cuts, worth in ((first, 0.0), (others, WORTH_LINES_GAP * graph.seconds)):
        for point in points:
            if point.seconds - max(point.bound_seconds, graph.seconds) < worth:
                continue
            for cut in cuts:
                if (left := deadline - time.monotonic()) <= 0.0:
                    break
                found.append(supporting_line(problem, point.budget_bytes, cut, seconds=left))
    return tuple(dict.fromkeys(line for line in found if line is not None and line.slope < 0))


def _improved(graph: Graph, points: Sequence[Point], deadline: float = math.inf) -> list[Point]:
    """Let every point try its neighbours' schedules: the larger's to fit, the smaller's to prune.

    What the smaller budget's schedule costs is never exceeded.
    """
    problem = flatten(graph)
    found = list(points)
    for step, indices in ((1, reversed(range(len(found)))), (-1, range(len(found)))):
        for i in indices:
            j, point = i + step, found[i]
            gap = point.seconds - max(point.bound_seconds, graph.seconds)
            late = time.monotonic() > deadline
            if late or not 0 <= j < len(found) or gap <= WORTH_NEIGHBOURS_GAP * graph.seconds:
                continue
            search = Search(problem, point.budget_bytes, deadline=deadline)
            search.offer(found[j].schedule.order)
            found[i] = _better(graph, point, search)
    for i in range(1, len(found)):
        if found[i - 1].seconds < found[i].seconds:
            smaller = found[i - 1]
            found[i] = replace(
                found[i],
                schedule=smaller.schedule,
                seconds=smaller.seconds,
                peak_bytes=smaller.peak_bytes,
            )
    return found


def _better(graph: Graph, point: Point, search: Search) -> Point:
    """Return the point, with the order of a search if that is faster."""
    if search.order is None or search.base + search.extra >= point.seconds:
        return point
    schedule = schedule_from_order(graph, search.order)
    return _point(graph, point.budget_bytes, schedule, point.bound_seconds)


def bounded(frontier: Frontier) -> Frontier:
    """Return a curve whose points have what larger budgets and the lines prove of them.

    Args:
        frontier: whose points have what was proved at each.
    """
    found: list[Point] = []
    proved = 0.0
    for point in reversed(frontier.points):
        proved = max(proved, frontier.bound_seconds(point.budget_bytes))
        assert proved <= point.seconds * (1 + 1e-6), "a bound above a schedule that fits"
        found.append(replace(point, bound_seconds=min(proved, point.seconds)))
    return replace(frontier, points=tuple(found[::-1]))
