"""Solving with values that may move to the host, for what a device's allocator needs.

As ``planner.allocator_budget`` without the host: solve, replay through the allocator, take the
excess off the budget of the tensors and solve again. Recomputation alone is always among what is
chosen from, found as it is without offload. Says what came of the choice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from planner.allocator_budget import allocator_of, needed_bytes, runs, solve_within
from planner.byte_sizes import format_percent
from planner.graphs import Graph, Schedule, simulate
from planner.graphs.hardware.host_tier import HostTier, lies_in_memory
from planner.request import Request
from planner.solvers import Solution, Status
from planner.solvers.api import floor_bytes
from planner.solvers.offload import Offloading, solve_with_host

_ROUNDS = 6
_LEAST_STEP = 0.004
_LEAST_SHARE = 0.5
"""The part of the seconds that is kept for moving, whatever recomputation alone takes."""
_BESIDE = "beside the optimizer's states"


@dataclass(frozen=True)
class MovedSolution:
    """A solution, and what a person should know of why it moves values or does not."""

    solution: Solution
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """The step, what the device has for it, by which method, and where values may go."""

    graph: Graph
    budget_bytes: int
    request: Request
    host: HostTier
    kept_seconds: float | None = None

    @property
    def may(self) -> str:
        """What is allowed, in words; states of the optimizer that are there are not its values."""
        beside = "" if self.kept_seconds is None else f" {_BESIDE}"
        return f"values may move to the host{beside} (offload=)"

    def seconds(self, schedule: Schedule) -> float:
        """Return the time of a schedule."""
        return simulate(self.graph, schedule, link_bytes_per_second=self.host.rates).seconds


def solve_within_host(
    graph: Graph,
    budget_bytes: int,
    request: Request,
    host: HostTier,
    *,
    thorough: bool = True,
    kept_seconds: float | None = None,
) -> MovedSolution:
    """Find a schedule that runs on a device of so many bytes and may move values to the host.

    Args:
        graph: the step.
        budget_bytes: what the device has for it.
        request: by which method, within which limits, on which device with which allocator.
        host: where values may go.
        thorough: as for ``solve_within``.
        kept_seconds: where the graph is of a step with states of its optimizer on the host, what
            the plain step takes with all on the device.
    """
    start, seconds = time.perf_counter(), request.limits.seconds
    half = replace(request.limits, seconds=(1 - _LEAST_SHARE) * seconds)
    still = replace(request, offload=None, limits=half)
    alone = solve_within(graph, budget_bytes, still, thorough=thorough)
    asked = _Asked(graph, budget_bytes, request, host, kept_seconds)
    if alone.schedule is not None and alone.schedule.is_plain:
        how = "as it is" if kept_seconds is None else "with those there"
        return MovedSolution(alone, (f"{asked.may}, and need not: the step fits {how}",))
    request.tell("looking for values to move to the host while the device computes")
    limits = request.limits.after(time.perf_counter() - start)
    asked = replace(asked, request=replace(request, limits=limits))
    moved, bound = _through_allocator(asked, alone)
    if moved is None or (schedule := moved.solution.schedule) is None:
        return _alone(asked, alone, graph.seconds, "nothing that moves was found to fit")
    before = None if alone.schedule is None else asked.seconds(alone.schedule)
    after = asked.seconds(schedule)
    if before is not None and before <= after:
        return _alone(asked, alone, bound, "it would be no quicker")
    solution = _judged(asked, moved.solution, after, bound)
    said = _compared(asked, before, moved.moving_seconds)
    in_memory = host.directory is not None and lies_in_memory(host.directory)
    return MovedSolution(solution, (said, _IN_MEMORY) if in_memory else (said,))


_IN_MEMORY = (
    "the directory of the files lies in memory (tmpfs): tensors need no more than the plan says, "
    "and the machine no less than before; pass offload= a directory on a disk"
)


def _through_allocator(asked: _Asked, alone: Solution) -> tuple[Offloading | None, float]:
    """Return what runs through the device's allocator, and the bound of the person's budget.

    Args:
        asked: what is planned.
        alone: the solution that moves nothing; solved for this very budget if none takes more.
    """
    graph, request, budget_bytes = asked.graph, asked.request, asked.budget_bytes
    allocator = allocator_of(request.allocator, request.hardware)
    target, bound = budget_bytes, graph.seconds
    until = time.perf_counter() + request.limits.seconds
    for k in range(_ROUNDS if allocator else 1):
        limits = request.limits
        if k:
            limits = limits.of_a_correction((until - time.perf_counter()) / 2)
        found = solve_with_host(
            graph,
            target,
            asked.host,
            method=request.method,
            limits=limits,
            alone=None if allocator else alone,
        )
        schedule = found.solution.schedule
        bound = found.solution.bound_seconds if k == 0 else bound
        if schedule is None:
            break
        if allocator is None or runs(graph, schedule, budget_bytes, request):
            return found, bound
        excess = needed_bytes(graph, schedule, request) - budget_bytes
        target -= max(excess, int(budget_bytes * _LEAST_STEP))
    return None, bound


def _alone(asked: _Asked, alone: Solution, bound: float, reason: str) -> MovedSolution:
    """Return what recomputation alone does, with a bound for schedules that move values, too."""
    said = f"{asked.may}, and do not: {reason}"
    if alone.schedule is None:
        message = "; ".join(filter(None, (alone.message, reason)))
        if floor_bytes(asked.graph) > asked.budget_bytes:
            return MovedSolution(replace(alone, message=message))
        # that nothing fits which moves nothing is no proof here
        return MovedSolution(Solution(Status.UNKNOWN, None, bound, message))
    return MovedSolution(_judged(asked, alone, asked.seconds(alone.schedule), bound), (said,))


def _judged(asked: _Asked, found: Solution, seconds: float, bound: float) -> Solution:
    """Return a solution with the bound of the person's budget, optimal if it is close to that.

    A bound for the captured order says nothing of a schedule in another.
    """
    base = asked.graph.seconds
    bound = base if found.reordered else min(bound, seconds)
    close = seconds - bound <= asked.request.limits.gap * base
    status = Status.OPTIMAL if close else Status.FEASIBLE
    return replace(found, bound_seconds=bound, status=status)


def _compared(asked: _Asked, recomputing: float | None, moving: float | None) -> str:
    """Say what each choice alone would cost, of the step with nothing on the host."""
    kept = asked.kept_seconds
    plain = asked.graph.seconds if kept is None else kept
    beside = "" if kept is None else f"{_BESIDE}, "

    def cost(seconds: float | None) -> str:
        if seconds is None:
            return "was not found to fit"
        return f"would take +{format_percent(seconds / plain - 1)} of the plain step"

    return (
        f"{beside}recomputing alone {cost(recomputing)}, and moving values to the host alone "
        f"{cost(moving)}"
    )
