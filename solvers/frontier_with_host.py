"""The curve of memory against time where values may move to the host.

As ``solvers.frontier``, and with the same answer. What fits a budget fits every larger one whatever
moves, so a bound at one budget holds for every smaller one; the lines of that file are not drawn,
since they are for schedules that move nothing. Recomputation alone is solved at the same budgets
first, so that no point is slower than it; what is found there is where points begin to move values.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from planner.graphs import Graph, Schedule, plain_schedule, schedule_from_order, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import Limits, Solution, Status, deadline_of, solve
from planner.solvers.frontier import Frontier, Point, bounded, solved_at, spaced
from planner.solvers.least_with_host import least_with_host
from planner.solvers.minimum_budget import MinimumBudget, minimum_budget
from planner.solvers.model.problem import flatten
from planner.solvers.offload import solve_with_host
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import HOST_ALONE_SHARE, LEAST_SHARE, POINT_GAP


def frontier_with_host(
    graph: Graph, tier: HostTier, points: int = 20, limits: Limits | None = None
) -> Frontier:
    """Solve at budgets from the least known to work to what plain training needs.

    The least budget known to work without a host is one more, where it is another.

    Args:
        graph: the step.
        tier: where its values may go.
        points: how many budgets.
        limits: when to stop; the seconds are for all points together.

    Raises:
        ValueError: fewer than two points.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 3.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 5.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> found = frontier_with_host(g, HostTier(1.0, 1.0), points=2)
    >>> [(p.budget_bytes, p.seconds - g.seconds) for p in found.points]
    [(3, 1.0), (4, 0.0)]
    """
    if points < 2:
        raise ValueError(f"{points} points make no curve: ask for 2 or more")
    limits = limits or Limits()
    deadline = deadline_of(limits)
    known = minimum_budget(graph, limits=replace(limits, seconds=LEAST_SHARE * limits.seconds))
    least = least_with_host(
        graph, tier, known, deadline=time.monotonic() + LEAST_SHARE * limits.seconds
    )
    plain_bytes = simulate(graph, plain_schedule(graph)).peak_bytes
    budgets = sorted({*spaced(least.least_bytes, plain_bytes, points), known.least_bytes})
    each = replace(limits, gap=max(limits.gap, POINT_GAP), seconds=limits.seconds / len(budgets))
    alone = _alone(graph, tier, known, budgets, each, deadline=deadline)
    share = replace(each, seconds=(1 - LEAST_SHARE - HOST_ALONE_SHARE) * each.seconds)
    found: list[Point] = []
    for budget in reversed(budgets):  # a point begins where larger ones ended
        begun = [*alone, *found]
        if (left := deadline - time.monotonic()) <= 0.0:
            found.append(_best_known(graph, tier, budget, begun, least.schedule))
            continue
        share = replace(share, seconds=min(share.seconds, left))
        found.append(_solved(graph, tier, budget, begun, fallback=least.schedule, limits=share))
    found.reverse()
    found[0] = replace(found[0], budget_bytes=found[0].peak_bytes)  # nothing less is known to work
    return _assembled(graph, found, least.floor_bytes)


def _alone(
    graph: Graph,
    tier: HostTier,
    known: MinimumBudget,
    budgets: Sequence[int],
    limits: Limits,
    *,
    deadline: float,
) -> list[Point]:
    """Solve without a host; below the least budget known for that, too, since more may be found."""
    share = replace(limits, seconds=HOST_ALONE_SHARE * limits.seconds)
    above = [b for b in budgets if b >= known.least_bytes]
    found = solved_at(graph, above, known.schedule, share, deadline=deadline)
    for budget in reversed(budgets[: len(budgets) - len(above)]):
        if time.monotonic() < deadline:
            found += _attempts(graph, tier, budget, found, share)
    return found


def refined_with_host(
    graph: Graph, tier: HostTier, known: Frontier, budgets: Iterable[int], limits: Limits
) -> Frontier:
    """Return a frontier with more points; ``limits`` are for each. Budgets below all are left out.

    Args:
        graph, tier: as for ``frontier_with_host``.
        known: what is to be refined.
        budgets: in bytes.
        limits: when to stop.
    """
    half = replace(limits, seconds=limits.seconds / 2)
    fresh: list[Point] = []
    for budget in budgets:
        below = known.at(budget)
        if below is not None and below.budget_bytes != budget:
            begun = [*known.points, *_attempts(graph, tier, budget, known.points, half)]
            fresh.append(_solved(graph, tier, budget, begun, fallback=below.schedule, limits=half))
    points = sorted((*known.points, *fresh), key=lambda p: p.budget_bytes)
    return _assembled(graph, points, known.floor_bytes)


def _attempts(
    graph: Graph, tier: HostTier, budget: int, known: Sequence[Point], limits: Limits
) -> Iterator[Point]:
    """Solve without a host where nothing need be known to fit: by evicting from what is known for
    larger budgets, the next first and half of the time at most, and anew."""
    start = time.monotonic()
    search = Search(flatten(graph), budget, deadline=start + limits.seconds / 2)
    for point in sorted((p for p in known if p.budget_bytes > budget), key=lambda p: p.peak_bytes):
        if time.monotonic() - start < limits.seconds / 2:
            search.offer(point.schedule.order)
    seconds = max(0.0, limits.seconds - (time.monotonic() - start))
    left = replace(limits, seconds=seconds, reorder=False)
    evicted = None if search.order is None else schedule_from_order(graph, search.order)
    for schedule in (evicted, solve(graph, budget, limits=left).schedule):
        if schedule is not None and not schedule.is_reordered:
            yield _point(graph, tier, budget, schedule, graph.seconds)


def _solved(
    graph: Graph,
    tier: HostTier,
    budget: int,
    known: Sequence[Point],
    *,
    fallback: Schedule,
    limits: Limits,
) -> Point:
    """Solve at one budget, beginning with what is known at others; the fallback fits, too."""
    still = sorted((p for p in known if not p.schedule.moves), key=lambda p: p.peak_bytes)
    fits = [p for p in still if p.peak_bytes <= budget]
    alone = Solution(Status.UNKNOWN, None, graph.seconds, "")
    if fits:
        best = min(fits, key=lambda p: p.seconds).schedule
        alone = Solution(Status.FEASIBLE, best, graph.seconds, "")
    found = solve_with_host(
        graph,
        budget,
        tier,
        limits=replace(limits, reorder=False),
        alone=alone,
        tightest=still[0].schedule if still else None,
        larger=[(p.budget_bytes, p.schedule) for p in known if p.budget_bytes > budget],
    ).solution
    schedules = [s for s in (found.schedule, fallback) if s is not None]
    points = [_point(graph, tier, budget, s, found.bound_seconds) for s in schedules]
    return min(points, key=lambda p: p.seconds)


def _best_known(
    graph: Graph, tier: HostTier, budget: int, known: Sequence[Point], fallback: Schedule
) -> Point:
    """Return the quickest point known that fits, else the fallback; nothing is proved of it."""
    fits = [p for p in known if p.peak_bytes <= budget]
    schedule = min(fits, key=lambda p: p.seconds).schedule if fits else fallback
    return _point(graph, tier, budget, schedule, graph.seconds)


def _point(graph: Graph, tier: HostTier, budget: int, schedule: Schedule, bound: float) -> Point:
    trace = simulate(graph, schedule, link_bytes_per_second=tier.rates)
    return Point(budget, trace.peak_bytes, trace.seconds, min(bound, trace.seconds), schedule)


def _assembled(graph: Graph, points: Sequence[Point], floor: int) -> Frontier:
    """Let the points share what was found and proved at each."""
    found: list[Point] = []
    for point in points:
        quicker = found and found[-1].seconds < point.seconds
        if quicker:
            point = replace(  # noqa: PLW2901
                point,
                schedule=found[-1].schedule,
                seconds=found[-1].seconds,
                peak_bytes=found[-1].peak_bytes,
            )
        found.append(point)
    return bounded(Frontier(tuple(found), (), floor, graph.seconds))
