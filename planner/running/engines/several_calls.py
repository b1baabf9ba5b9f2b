"""One schedule for several calls of a step that wait for their backward passes at once.

What a call holds while it waits counts as often as others wait, so that two limits belong together:
of that, and of what a call holds while it runs. The least time over all ways to part the budget
between them is found by halving, each part with a proven bound. Knows no compiler.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from planner.graphs import Graph, Schedule, plain_schedule, simulate
from planner.graphs.capture.fused.other_calls import (
    Calls,
    arriving,
    handed_bytes,
    waiting_bytes,
    with_others,
    with_waiting,
)
from planner.solvers import Limits, Solution, Status, minimum_budget, solve

PARTS = 24
"""At most so many parts of the budget are solved."""
NARROW = 0.01
"""A part is not halved that is so small a share of what a plain call holds while it waits."""
SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""What a call may hold while it runs beyond what it holds while it waits, where the least of both
together is looked for: in what the plain call holds.
"""


@dataclass(order=True)
class _Part:
    """Calls that hold ``least`` to ``most`` bytes while they wait, and a bound for them."""

    bound_seconds: float
    least: int
    most: int
    schedule: Schedule | None = field(compare=False, default=None)


@dataclass
class _Parting:
    graph: Graph
    budget_bytes: int
    calls: Calls
    method: str
    limits: Limits
    begun: float = field(default_factory=time.monotonic)
    best: Schedule | None = None
    message: str = ""

    def solved(self, held: int, most: int) -> Solution:
        """Solve for calls that hold at most some bytes while they wait, the others ``held``."""
        left = max(0.0, self.limits.seconds - (time.monotonic() - self.begun))
        limits = replace(self.limits, seconds=left, reorder=False)
        graph = with_waiting(self.graph, held, self.calls)
        found = solve(
            _waiting_at_most(graph, most, self.budget_bytes),
            self.budget_bytes,
            method=self.method,
            limits=limits,
        )
        if found.schedule is not None:
            self.offer(found.schedule)
        self.message = found.message or self.message
        return found

    def offer(self, schedule: Schedule) -> None:
        """Keep the quickest schedule that fits."""
        if self.peak(schedule) <= self.budget_bytes and self.seconds(schedule) < self.best_seconds:
            self.best = schedule

    def peak(self, schedule: Schedule) -> int:
        """Return the most that all calls hold together."""
        return simulate(with_others(self.graph, schedule, self.calls), schedule).peak_bytes

    def seconds(self, schedule: Schedule) -> float:
        """Return what a schedule takes."""
        return simulate(self.graph, schedule).seconds

    @property
    def best_seconds(self) -> float:
        return math.inf if self.best is None else self.seconds(self.best)

    def part(self, least: int, most: int) -> _Part:
        """Bound the time of calls that hold some bytes, and look for one that fits."""
        found = self.solved(least, most)
        bound = math.inf if found.status is Status.INFEASIBLE else found.bound_seconds
        if found.schedule is not None and self.peak(found.schedule) > self.budget_bytes:
            self.solved(most, most)
        return _Part(bound, least, most, found.schedule)


def solve_for_calls(
    graph: Graph, budget_bytes: int, calls: Calls, *, method: str, limits: Limits
) -> Solution:
    """Find the quickest schedule that several calls may run within one budget.

    Args:
        graph: of one call, of many.
        budget_bytes: what all calls may hold together.
        calls: how many wait at once; a call alone is solved as any step.
        method, limits: as for ``solve``; first runs keep their order.
    """
    if calls.count == 1:
        return solve(graph, budget_bytes, method=method, limits=limits)
    plain = plain_schedule(graph)
    search = _Parting(graph, budget_bytes, calls, method, limits)
    usual = waiting_bytes(graph, plain)
    search.offer(plain)
    parts = [search.part(handed_bytes(graph), usual)]
    for _ in range(PARTS):
        parts.sort()
        first = parts[0]
        close = search.best_seconds - first.bound_seconds <= limits.gap * graph.seconds
        if close or first.most - first.least <= NARROW * usual or math.isinf(first.bound_seconds):
            break
        middle = (first.least + first.most) // 2
        parts[:1] = [search.part(first.least, middle), search.part(middle, first.most)]
    bound = min(*(p.bound_seconds for p in parts), search.best_seconds)
    if search.best is None:
        nothing = Status.INFEASIBLE if math.isinf(bound) else Status.UNKNOWN
        return Solution(nothing, None, bound, search.message)
    close = search.best_seconds - bound <= limits.gap * graph.seconds
    return Solution(Status.OPTIMAL if close else Status.FEASIBLE, search.best, bound, "")


def leanest(graph: Graph, calls: Calls, limits: Limits) -> Iterator[Schedule]:
    """Yield schedules of which one holds about the least that several calls can.

    Args:
        graph: of one call, of many.
        calls: how many wait at once.
        limits: for all of them together.
    """
    if calls.count == 1:
        yield minimum_budget(graph, limits=limits).schedule
        return
    each = replace(limits, seconds=limits.seconds / len(SHARES))
    usual, place = waiting_bytes(graph, plain_schedule(graph)), arriving(graph)
    for share in SHARES:
        beside = _with_workspace(graph, place, int(share * usual))
        yield minimum_budget(beside, limits=each).schedule


def _waiting_at_most(graph: Graph, most: int, budget_bytes: int) -> Graph:
    """Return a graph that is beyond the budget where a call holds more while it waits."""
    place = arriving(graph)
    there = (*graph.ops[place].outputs, *graph.ops[0].outputs)
    throughout = graph.resident_bytes + sum(graph.values[v].size_bytes for v in there)
    left = budget_bytes - throughout - (most - handed_bytes(graph))
    return _with_workspace(graph, place, max(0, left))


def _with_workspace(graph: Graph, place: int, workspace_bytes: int) -> Graph:
    op = replace(graph.ops[place], workspace_bytes=workspace_bytes)
    return replace(graph, ops=(*graph.ops[:place], op, *graph.ops[place + 1 :]))
