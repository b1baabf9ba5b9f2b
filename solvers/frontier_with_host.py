"""The curve of memory against time where values may move to the host.

As ``solvers.frontier``, and with the same answer. What fits a budget fits every larger one whatever
moves, so a bound at one budget holds for every smaller one; the lines of that file are not drawn,
since they are for schedules that move nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from planner.graphs import Graph, Schedule, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import Limits
from planner.solvers.frontier import Frontier, Point, spaced
from planner.solvers.least_with_host import least_with_host
from planner.solvers.minimum_budget import minimum_budget
from planner.solvers.offload import solve_with_host
from planner.solvers.tuning import LEAST_SHARE, POINT_GAP


def frontier_with_host(
    graph: Graph, tier: HostTier, points: int = 20, limits: Limits | None = None
) -> Frontier:
    """Solve at budgets from the least known to work to what plain training needs.

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
    known = minimum_budget(graph, limits=replace(limits, seconds=LEAST_SHARE * limits.seconds))
    least = least_with_host(graph, tier, known)
    budgets = spaced(least.least_bytes, simulate(graph, plain_schedule(graph)).peak_bytes, points)
    share = replace(
        limits, gap=max(limits.gap, POINT_GAP), seconds=(1 - LEAST_SHARE) * limits.seconds / points
    )
    found = [_solved(graph, tier, b, (least.schedule, known.schedule), share) for b in budgets]
    found[0] = replace(found[0], budget_bytes=found[0].peak_bytes)  # nothing less is known to work
    return _assembled(graph, found, least.floor_bytes)


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
    fresh = [
        _solved(graph, tier, budget, (point.schedule,), limits)
        for budget in budgets
        if (point := known.at(budget)) is not None and point.budget_bytes != budget
    ]
    points = sorted((*known.points, *fresh), key=lambda p: p.budget_bytes)
    return _assembled(graph, points, known.floor_bytes)


def _solved(
    graph: Graph, tier: HostTier, budget: int, known: Sequence[Schedule], limits: Limits
) -> Point:
    """Solve at one budget; of the known schedules the first fits, the last moves nothing if one
    does."""
    tightest = known[-1] if not known[-1].moves else None
    limits = replace(limits, reorder=False)
    solution = solve_with_host(graph, budget, tier, limits=limits, tightest=tightest).solution
    schedule = known[0] if solution.schedule is None else solution.schedule
    trace = simulate(graph, schedule, link_bytes_per_second=tier.rates)
    bound = min(solution.bound_seconds, trace.seconds)
    return Point(budget, trace.peak_bytes, trace.seconds, bound, schedule)


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
    proved, bounded = 0.0, list[Point]()
    for point in reversed(found):
        proved = max(proved, point.bound_seconds)
        assert proved <= point.seconds * (1 + 1e-6), "a bound above a schedule that fits"
        bounded.append(replace(point, bound_seconds=min(proved, point.seconds)))
    return Frontier(tuple(bounded[::-1]), (), floor, graph.seconds)
