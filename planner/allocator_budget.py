"""Solving for what an accelerator's allocator needs, which is more than the tensors' bytes.

Solve, replay the schedule through the allocator, take what it needs too much off the budget of the
tensors, and solve again. The bound stays the one proved for the person's budget.
"""

from __future__ import annotations

import os
from dataclasses import replace

from planner.graphs import Graph, Schedule, simulate
from planner.graphs.allocation import needs, runs_within
from planner.graphs.hardware.allocators import EXPANDABLE, SEGMENTS
from planner.graphs.hardware.columns import Device
from planner.request import Request
from planner.solvers import Limits, MinimumBudget, Solution, Status, minimum_budget, solve

SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

_ROUNDS, _QUICK_ROUNDS = 5, 2
_HALVINGS = 4
_LEAST_STEP = 0.004
_LATER_SHARE = 20
_LATER_SECONDS = 2.0
_LATER_GAP = 0.01


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
    first = solve(graph, budget_bytes, method=request.method, limits=request.limits)
    allocator = allocator_of(request.allocator, request.hardware)
    if allocator is None or first.schedule is None:
        return first
    found, excess = first, _excess(graph, first, budget_bytes, request)
    target = failed = min(budget_bytes, simulate(graph, first.schedule).peak_bytes)
    for _ in range(_ROUNDS if thorough else _QUICK_ROUNDS):
        if not excess or found.schedule is None:
            break
        request.tell(f"its allocator needs {excess / budget_bytes:.1%} more than that: again")
        failed, target = target, target - max(excess, int(budget_bytes * _LEAST_STEP))
        found = solve(graph, target, method=request.method, limits=_later(request.limits))
        excess = _excess(graph, found, budget_bytes, request)
    if excess:
        least, needed = least_budget(graph, request) if thorough else (None, budget_bytes + 1)
        if least is None or needed > budget_bytes:
            reason = f"tensors would fit, but not the {allocator} of the allocator"
            return Solution(Status.UNKNOWN, None, first.bound_seconds, reason)
        target = simulate(graph, least.schedule).peak_bytes
        found = replace(first, schedule=least.schedule, message="the least budget's schedule")
    if thorough and found is not first:
        found = _halved(graph, budget_bytes, request, found, (target, failed))
    return _judged(graph, found, first, request.limits)


def _excess(graph: Graph, found: Solution, budget_bytes: int, request: Request) -> int:
    """Return how many bytes a solution needs too many, a whole budget if it has no schedule."""
    if found.schedule is None:
        return budget_bytes
    if runs(graph, found.schedule, budget_bytes, request):
        return 0
    return max(1, needed_bytes(graph, found.schedule, request) - budget_bytes)


def _halved(
    graph: Graph, budget_bytes: int, request: Request, known: Solution, between: tuple[int, int]
) -> Solution:
    """Look for a quicker schedule that runs, between a budget of tensors that does and one that
    does not.
    """
    low, high = between
    limits = _later(request.limits)
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        found = solve(graph, middle, method=request.method, limits=limits)
        if found.schedule is not None and runs(graph, found.schedule, budget_bytes, request):
            low, known = middle, min(known, found, key=lambda s: _seconds(graph, s))
        else:
            high = middle
    return known


def _seconds(graph: Graph, solution: Solution) -> float:
    assert solution.schedule is not None, "it runs"
    return simulate(graph, solution.schedule).seconds


def _later(limits: Limits) -> Limits:
    """Return the limits of a correction: less time, for a plan only a little better than known."""
    seconds = min(limits.seconds, max(_LATER_SECONDS, limits.seconds / _LATER_SHARE))
    return replace(limits, seconds=seconds, gap=max(limits.gap, _LATER_GAP))


def _judged(graph: Graph, found: Solution, first: Solution, limits: Limits) -> Solution:
    """Return a solution with the bound of the person's budget, optimal if it is close to that.

    A bound for the captured order says nothing of a schedule in another: for that one only every op
    once is proved.
    """
    assert found.schedule is not None, "it runs"
    seconds = simulate(graph, found.schedule).seconds
    bound = first.bound_seconds
    if found.reordered and not first.reordered:
        bound = graph.seconds
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
        return simulate(graph, schedule).peak_bytes <= budget_bytes
    return runs_within(graph, schedule, budget_bytes, expandable=allocator == EXPANDABLE)


def needed_bytes(graph: Graph, schedule: Schedule, request: Request) -> int:
    """Return the least memory in which a schedule runs on the device of a request.

    Args:
        graph, schedule: what runs.
        request: on which device, with which allocator.
    """
    allocator = allocator_of(request.allocator, request.hardware)
    if allocator is None:
        return simulate(graph, schedule).peak_bytes
    return needs(graph, schedule, expandable=allocator == EXPANDABLE).needed_bytes


def least_budget(graph: Graph, request: Request) -> tuple[MinimumBudget, int]:
    """Return the tightest schedule known and the least device memory in which it runs.

    Args:
        graph: the step.
        request: on which device, with which allocator, within which limits.
    """
    least = minimum_budget(graph, limits=request.limits)
    return least, needed_bytes(graph, least.schedule, request)
