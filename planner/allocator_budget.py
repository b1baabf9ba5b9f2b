"""Solving for what an accelerator's allocator needs, which is more than the tensors' bytes.

Solve, replay the schedule through the allocator, and if that needs too much, order the same ops and
frees so that it loses less; if that is not enough, take some of the excess off the budget of the
tensors, and solve again. The bound stays the one proved for the person's budget.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.graphs import Graph, Schedule, simulate
from planner.graphs.allocation import kept_bytes, needs, runs_within
from planner.graphs.hardware.allocators import EXPANDABLE, SEGMENTS
from planner.graphs.hardware.columns import Device
from planner.request import Request
from planner.solvers import Limits, MinimumBudget, Solution, Status, minimum_budget, solve
from planner.solvers.api import deadline_of
from planner.solvers.given_order import STOPPED
from planner.solvers.least_with_host import least_with_host
from planner.solvers.reorder import any_order_bound
from planner.solvers.search.packing import packed
from planner.solvers.tuning import PACKING_EVENTS

SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

_ROUNDS, _QUICK_ROUNDS = 5, 2
_FIRST_SHARE = 0.75
"""The part of the seconds for the person's own budget; the rest is for corrections, each of which
may take half of what is left."""
_HALVINGS = 4
_LEAST_STEP = 0.004
_WORTH_PACKING, _WORTH_MUCH_ROOM, _WORTH_ANY_ORDER = 0.01, 0.001, 0.02
"""From which extra time on, as a fraction of the step, another order of frees and recomputations is
sought; with expandable segments, if ``_MUCH_ROOM`` of the budget is lost; and of first runs, too:
then the bound has to hold for any order, and is lower."""
_MUCH_ROOM = 0.02
_PACKINGS = 3
_PACKED_AT_ONCE, _PACKABLE = 0.025, 0.15
"""The excess, as a fraction of the budget, up to which an order of frees is sought before less is
asked of the tensors, with expandable segments, and beyond which that is without hope."""


def allocator_of(said: str, hardware: Device) -> str | None:
    """Return the allocator that a step is planned for, ``None`` where tensors' bytes are all.

    Args:
        said: "auto" goes by the settings of this process: segments unless they are expandable.
        hardware: the device.

    >>> from planner.graphs.hardware.devices import device
    >>> allocator_of("auto", device("A100-40GB")), allocator_of("auto", device("cpu"))
    ('segments', None)
    """
    if hardware.name == "cpu":
        return None
    if said != "auto":
        return said
    settings = ",".join(os.environ.get(name, "") for name in SETTINGS).replace(" ", "").lower()
    return EXPANDABLE if "expandable_segments:true" in settings else SEGMENTS


def solve_within(
    graph: Graph, budget_bytes: int, request: Request, *, thorough: bool = True
) -> Solution:
    """Find a schedule that runs on a device of so many bytes.

    Args:
        graph: the step.
        budget_bytes: what the device has for it.
        request: by which method, within which limits, on which device with which allocator.
        thorough: correct what the tensors may take often, try the least budget's schedule, too, and
            look for quicker ones beside what was found.
    """
    begun = time.perf_counter()
    allocator = allocator_of(request.allocator, request.hardware)
    limits = request.limits
    if allocator is not None:
        limits = replace(limits, seconds=_FIRST_SHARE * limits.seconds)
    first = solve(graph, budget_bytes, method=request.method, limits=limits)
    if allocator is None or first.schedule is None:
        return first
    until = begun + request.limits.seconds
    expandable = allocator == EXPANDABLE
    door = _Door(
        graph,
        budget_bytes,
        request,
        expandable,
        until,
        first_runs_too=_order_may_be_left(first),
        packable=_PACKED_AT_ONCE if expandable else 0.0,
    )
    if (passed := door.through(first)) is not None:
        return passed
    peak = min(budget_bytes, simulate(graph, first.schedule).peak_bytes)
    found, target = _lowered(door, first, peak, _ROUNDS if thorough else _QUICK_ROUNDS)
    if found is not None and thorough:
        found, target = _halved(door, found, (target, peak), _HALVINGS)
    for reorder, worth in door.chances(first, found) if thorough else ():
        lost = math.inf if found is None else _seconds(graph, found) - _seconds(graph, first)
        if lost <= worth * graph.seconds:
            break
        request.tell("looking for an order of frees and ops that its allocator loses less with")
        pack = replace(door, packable=_PACKABLE, reorder=reorder)
        if packing := pack.through(first):
            found, target = packing, peak
        else:
            found, target = _halved(pack, found, (target, peak), _PACKINGS)
    if found is None:
        left = replace(request, limits=limits_left(request, begun))
        least, needed = least_budget(graph, left) if thorough else (None, budget_bytes + 1)
        if least is None or needed > budget_bytes:
            reason = f"tensors would fit, but not the {allocator} of the allocator"
            reason += f"; {STOPPED}" if door.late else ""
            return Solution(Status.UNKNOWN, None, first.bound_seconds, reason)
        found = replace(first, schedule=least.schedule, message="the least budget's schedule")
        target = simulate(graph, least.schedule).peak_bytes
        found, _ = _halved(door, found, (target, peak), _HALVINGS)
    assert found is not None, "it was refused otherwise"
    found = _judged(door, found, first)
    return replace(found, message=found.message or STOPPED) if door.late else found


@dataclass(frozen=True)
class _Door:
    """What a schedule has to get through: an allocator within a budget, until some time.

    ``first_runs_too`` lets corrections leave the graph's order, if the limits do. What needs up to
    ``packable`` of the budget too much may get through with its frees in another order.
    """

    graph: Graph
    budget_bytes: int
    request: Request
    expandable: bool
    until: float
    first_runs_too: bool
    packable: float = 0.0
    reorder: bool = False

    @property
    def left_seconds(self) -> float:
        """How much time is left."""
        return self.until - time.perf_counter()

    @property
    def late(self) -> bool:
        """Whether no time is left."""
        return self.left_seconds < 0

    def solved(self, target_bytes: int) -> Solution:
        """Solve for less than the budget."""
        limits = self.request.limits.of_a_correction(self.left_seconds / 2)
        limits = replace(limits, reorder=limits.reorder and self.first_runs_too)
        return solve(self.graph, target_bytes, method=self.request.method, limits=limits)

    def lets(self, solution: Solution) -> bool:
        """Tell whether a solution runs as it is."""
        schedule = solution.schedule
        return schedule is not None and runs(self.graph, schedule, self.budget_bytes, self.request)

    def excess(self, schedule: Schedule) -> int:
        """Return how many bytes a schedule needs too many."""
        return needed_bytes(self.graph, schedule, self.request) - self.budget_bytes

    def chances(self, first: Solution, found: Solution | None) -> Iterator[tuple[bool, float]]:
        """Yield whether to exchange first runs, and the extra time from which on it is worth it."""
        worth, may = _WORTH_PACKING, self.request.limits.reorder
        if found is not None and found.schedule is not None and self.expandable:
            peak = simulate(self.graph, found.schedule).peak_bytes
            room = self.budget_bytes - kept_bytes(self.graph)
            if self.budget_bytes - peak > _MUCH_ROOM * room:
                worth = _WORTH_MUCH_ROOM
        # what costs nothing is proved whatever the order
        reorder = may and first.schedule is not None and first.schedule.is_plain
        yield reorder, worth
        if may and not reorder:
            yield True, _WORTH_ANY_ORDER

    def through(self, solution: Solution) -> Solution | None:
        """Return a solution that runs: this one, or one with its ops and frees in another order."""
        if (schedule := solution.schedule) is None or self.lets(solution):
            return solution if schedule else None
        if self.late or self.excess(schedule) > self.packable * self.budget_bytes:
            return None
        limits = self.request.limits
        found = packed(
            self.graph,
            schedule,
            self.budget_bytes,
            expandable=self.expandable,
            reorder=self.reorder,
            events=int(PACKING_EVENTS * min(1.0, limits.seconds / Limits().seconds)),
            seed=limits.seed,
        )
        return None if found is None else replace(solution, schedule=found)


def _order_may_be_left(first: Solution) -> bool:
    """Tell whether another order is worth looking for a little below the budget of a solution.

    Not if one that had to recompute kept to the graph's: nothing that is much better was in sight.
    """
    return first.reordered or (first.schedule is not None and first.schedule.is_plain)


def _lowered(door: _Door, first: Solution, target: int, rounds: int) -> tuple[Solution | None, int]:
    """Take off the budget of the tensors what is too much; return what runs then, and within what.

    If nothing does, the target is the last one that was tried.
    """
    found = first
    for _ in range(rounds):
        if door.late:
            break
        excess = door.excess(found.schedule) if found.schedule else door.budget_bytes
        told = f"its allocator needs {excess / door.budget_bytes:.1%} more than that: again"
        door.request.tell(told)
        target -= max(excess, int(door.budget_bytes * _LEAST_STEP))
        found = door.solved(target)
        if found.schedule is None:
            break
        if (passed := door.through(found)) is not None:
            return passed, target
    return None, target


def _halved(
    door: _Door, known: Solution | None, between: tuple[int, int], times: int
) -> tuple[Solution | None, int]:
    """Look for a quicker schedule that runs, between a budget of tensors that does and one that
    does not; return it and what it is within.
    """
    low, high = between
    for _ in range(times):
        if door.late:
            break
        middle = (low + high) // 2
        found = door.solved(middle)
        if (passed := door.through(found)) is not None:
            others = [] if known is None else [known]
            low, known = middle, min([*others, passed], key=lambda s: _seconds(door.graph, s))
        else:
            high = middle
    return known, low


def _seconds(graph: Graph, solution: Solution) -> float:
    assert solution.schedule is not None, "it runs"
    return simulate(graph, solution.schedule).seconds


def _judged(door: _Door, found: Solution, first: Solution) -> Solution:
    """Return a solution with the bound of the person's budget, optimal if it is close to that.

    A bound for the captured order says nothing of a schedule in another.
    """
    graph, limits = door.graph, door.request.limits
    seconds = _seconds(graph, found)
    bound = first.bound_seconds
    if found.reordered and not first.reordered:
        within = limits.of_a_correction(door.left_seconds)
        bound = any_order_bound(graph, door.budget_bytes, seconds, within)
    close = seconds - bound <= limits.gap * graph.seconds
    proved = first.status is Status.OPTIMAL and close
    status = Status.OPTIMAL if proved else Status.FEASIBLE
    return replace(found, status=status, bound_seconds=min(bound, seconds))


def runs(graph: Graph, schedule: Schedule, budget_bytes: int, request: Request) -> bool:
    """Tell whether a schedule runs on the device of a request with so many bytes.

    Args:
        graph, schedule: what runs.
        budget_bytes: what the device has for it.
        request: on which device, with which allocator.
    """
    allocator = allocator_of(request.allocator, request.hardware)
    if allocator is None:
        return needed_bytes(graph, schedule, request) <= budget_bytes
    return runs_within(graph, schedule, budget_bytes, expandable=allocator == EXPANDABLE)


def needed_bytes(graph: Graph, schedule: Schedule, request: Request) -> int:
    """Return the least memory in which a schedule runs on the device of a request.

    Args:
        graph, schedule: what runs.
        request: on which device, with which allocator.
    """
    allocator = allocator_of(request.allocator, request.hardware)
    if allocator is None:
        rates = {} if request.host is None else request.host.rates
        return simulate(graph, schedule, link_bytes_per_second=rates).peak_bytes
    return needs(graph, schedule, expandable=allocator == EXPANDABLE).needed_bytes


def limits_left(request: Request, begun: float) -> Limits:
    """Return what is left of the limits of a request.

    Args:
        request: whose limits are for all of a call.
        begun: when it began, of ``time.perf_counter``.
    """
    return request.limits.after(time.perf_counter() - begun)


def least_budget(
    graph: Graph, request: Request, *, thorough: bool = True
) -> tuple[MinimumBudget, int]:
    """Return the tightest schedule known and the least device memory in which it runs.

    Args:
        graph: the step.
        request: on which device, with which allocator and host, within which limits.
        thorough: whether the search may take most of its seconds.
    """
    deadline = deadline_of(request.limits)
    least = minimum_budget(graph, limits=request.limits, thorough=thorough)
    if request.host is not None:
        moving = least_with_host(graph, request.host, least, deadline=deadline)
        needed = needed_bytes(graph, moving.schedule, request)
        if needed < needed_bytes(graph, least.schedule, request):
            return moving, needed
        least = replace(least, floor_bytes=moving.floor_bytes)
    return least, needed_bytes(graph, least.schedule, request)
