"""Solving with values that may move to the host, for what a device's allocator needs.

As ``planner.allocator_budget`` without the host: solve, replay through the allocator, take the
excess off the budget of the tensors and solve again. Recomputation alone is always among what is
chosen from, found as it is without offload. Says what came of the choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.allocator_budget import allocator_of, needed_bytes, runs, solve_within
from planner.byte_sizes import format_percent
from planner.graphs import Graph, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.request import Request
from planner.solvers import Solution, Status
from planner.solvers.offload import Offloading, solve_with_host

_ROUNDS = 6
_LEAST_STEP = 0.004
_RECOMPUTING_SHARE = 0.4
"""The part of the seconds in which recomputation alone is planned."""


@dataclass(frozen=True)
class MovedSolution:
    """A solution, and what a person should know of why it moves values or does not."""

    solution: Solution
    remarks: tuple[str, ...]


def solve_within_host(
    graph: Graph, budget_bytes: int, request: Request, host: HostTier
) -> MovedSolution:
    """Find a schedule that runs on a device of so many bytes and may move values to the host.

    Args:
        graph: the step.
        budget_bytes: what the device has for it.
        request: by which method, within which limits, on which device with which allocator.
        host: where values may go.
    """
    first, rest = _RECOMPUTING_SHARE, 1 - _RECOMPUTING_SHARE
    limits = replace(request.limits, seconds=first * request.limits.seconds)
    alone = solve_within(graph, budget_bytes, replace(request, limits=limits))
    if alone.schedule is not None and alone.schedule.is_plain:
        said = "values may move to the host (offload=), and need not: the step fits as it is"
        return MovedSolution(alone, (said,))
    if alone.status is Status.INFEASIBLE and alone.bound_seconds == float("inf"):
        pass  # for schedules that only recompute: moving may still do it
    request.tell("looking for values to move to the host while the device computes")
    limits = replace(request.limits, seconds=rest * request.limits.seconds)
    within = replace(request, limits=limits)
    moved, bound = _through_allocator(graph, budget_bytes, within, host)
    return _better(graph, alone, moved, bound, request, host)


def _through_allocator(
    graph: Graph, budget_bytes: int, request: Request, host: HostTier
) -> tuple[Offloading | None, float]:
    """Return what runs through the device's allocator, and the bound of the person's budget."""
    target, bound = budget_bytes, graph.seconds
    for k in range(_ROUNDS if allocator_of(request.allocator, request.hardware) else 1):
        limits = request.limits if k == 0 else request.limits.of_a_correction(4)
        found = solve_with_host(graph, target, host, method=request.method, limits=limits)
        schedule = found.solution.schedule
        bound = found.solution.bound_seconds if k == 0 else bound
        if schedule is None:
            return None, bound
        allocator = allocator_of(request.allocator, request.hardware)
        if allocator is None or runs(graph, schedule, budget_bytes, request):
            return found, bound
        excess = needed_bytes(graph, schedule, request) - budget_bytes
        target -= max(excess, int(budget_bytes * _LEAST_STEP))
    return None, bound


def _better(
    graph: Graph,
    alone: Solution,
    found: Offloading | None,
    bound: float,
    request: Request,
    host: HostTier,
) -> MovedSolution:
    """Choose the quicker one, and say by how much."""
    rates = host.rates
    if found is None:
        solution = replace(alone, bound_seconds=min(alone.bound_seconds, bound))
        reason = "moving values to the host (offload=) was tried, and nothing found that fits"
        if alone.schedule is None:
            return MovedSolution(replace(alone, message=_joined(alone.message, reason)), ())
        return MovedSolution(_of_all(solution), (reason,))
    schedule = found.solution.schedule
    assert schedule is not None, "it runs"
    seconds = simulate(graph, schedule, link_bytes_per_second=rates).seconds
    before = None
    if alone.schedule is not None:
        before = simulate(graph, alone.schedule).seconds
    if before is not None and before <= seconds:
        reason = "values may move to the host (offload=), and do not: it would be no quicker"
        least = graph.seconds if alone.reordered else min(bound, before)
        return MovedSolution(_of_all(replace(alone, bound_seconds=least)), (reason,))
    bound = min(bound, seconds)
    status = Status.OPTIMAL
    if schedule.is_reordered or seconds - bound > request.limits.gap * graph.seconds:
        status = Status.FEASIBLE
    solution = replace(found.solution, bound_seconds=bound, status=status)
    return MovedSolution(solution, tuple(_compared(graph, found, before)))


def _of_all(solution: Solution) -> Solution:
    """Return a solution of recomputation alone as one among all schedules with the host."""
    return replace(solution, status=Status.FEASIBLE)


def _compared(graph: Graph, found: Offloading, before: float | None) -> list[str]:
    """Say what each choice alone would cost."""

    def cost(seconds: float | None) -> str:
        if seconds is None:
            return "would not fit"
        return f"would take +{format_percent(seconds / graph.seconds - 1)} of the plain step"

    return [
        f"recomputing alone {cost(before)}, and moving values to the host alone "
        f"{cost(found.moving_seconds)}"
    ]


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
