"""From a captured step and a budget to a plan: solve, judge, say why not.

Knows which error each step can end in. How steps are captured and run is the engines' to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from planner.allocator_budget import (
    allocator_of,
    least_budget,
    limits_left,
    solve_within,
)
from planner.byte_sizes import format_both, parse_budget
from planner.errors import InfeasibleBudget
from planner.graphs import plain_schedule
from planner.graphs.torch_api.garbage import only_new_collected
from planner.host_budget import solve_within_host
from planner.host_states import choices, solve_with_states
from planner.plan.advice import infeasible
from planner.plan.chunk_notes import said, saving
from planner.plan.step_plan import StepPlan
from planner.request import Request
from planner.request_notes import ESTIMATED, beyond_the_device, unmeasured_times
from planner.solvers import Solution
from planner.solvers.given_order import STOPPED
from planner.step_variants import (
    AS_CAPTURED,
    captured_step,
    floor_of,
    least_in_chunks,
    variants_among,
)

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured

WORTH_ASKING = 0.01
"""By which part another variant is to be quicker than a plan, for a compiler to be asked of it."""


def plan_step(request: Request, budget_bytes: int) -> StepPlan:
    """Capture a step and plan it within a budget of bytes: the best of its variants.

    Raises:
        BadRequest: its loss is asked for in chunks and cannot be had so.
        CaptureError: the step cannot be captured.
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    return plan_variants(partial(captured_step, request), request, budget_bytes)


@only_new_collected()
def plan_variants(
    captured: Callable[[str], Captured], request: Request, budget_bytes: int
) -> StepPlan:
    """Plan a step as ``plan_step`` does.

    Args:
        captured: captures the step by the name of a rewrite.
        request: what else is said.
        budget_bytes: what the step may hold.
    """
    start = time.perf_counter()
    if not request.in_chunks:
        found = {v.rewrite: v for name in request.rewrites for v in [captured(name)]}
        whole, *_ = variants = list(found.values())
    else:
        whole = captured(AS_CAPTURED)
        variants = variants_among(whole, request, budget_bytes)
    begun = time.perf_counter()
    spent = begun - start
    try:
        best = best_plan if whole.compiled is None else best_compiled
        plan = best(variants, request, budget_bytes)
    except InfeasibleBudget as error:
        left = replace(request, limits=limits_left(request, begun))
        more = least_in_chunks(error.least_bytes, whole, left, spent)
        raise error.with_more(more) from error
    plan = replace(plan, capture_seconds=spent)
    if whole.rewrite != AS_CAPTURED:
        return plan
    remark = saving(whole) if plan.rewrite == AS_CAPTURED else said(plan, whole)
    return plan.with_remark(remark) if remark else plan


def best_plan(variants: Sequence[Captured], request: Request, budget_bytes: int) -> StepPlan:
    """Plan the quickest of some variants of a step within a budget of bytes.

    The time of a solver is for all of them together. A variant is not solved if it takes longer,
    with every op run once, than a plan that was found.

    Args:
        variants: of one step.
        request: by which method, within which limits, and what the plan says of itself.
        budget_bytes: what the step may hold.

    Raises:
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    floor = floor_of(request)
    floors = {v.rewrite: floor(v.graph) for v in variants if len(variants) > 1}
    ahead = [v for v in variants if floors.get(v.rewrite, 0) <= budget_bytes]
    ahead.sort(key=lambda v: v.graph.seconds)
    begun = time.perf_counter()

    def attempt(variant: Captured, share: float) -> StepPlan | str:
        left = limits_left(request, begun)
        limits = replace(left, seconds=share * left.seconds)
        return _attempt(variant, replace(request, limits=limits), budget_bytes)

    best: tuple[StepPlan, Captured] | None = None
    failed = dict[str, str]()
    for nth, variant in enumerate(ahead):
        if best is not None and variant.graph.seconds >= best[0].seconds:
            break
        found = attempt(variant, 1 / (len(ahead) - nth))
        if isinstance(found, str):
            failed[variant.rewrite] = found
        elif best is None or found.seconds < best[0].seconds:
            best = found, variant
    if best is None:
        leanest = min(variants, key=lambda v: floors.get(v.rewrite, 0))
        left = replace(request, limits=limits_left(request, begun))
        reason = failed.get(leanest.rewrite, STOPPED)
        if STOPPED in reason:  # it was not tried, or may take what the others left of the time
            return plan_captured(leanest, left, budget_bytes)
        raise _infeasible(leanest, left, budget_bytes, reason)
    plan, variant = best
    if len(ahead) == 1 or STOPPED not in plan.message:
        return plan
    if limits_left(request, begun).seconds < 2 * plan.solve_seconds:
        return plan  # what is left is not worth beginning anew
    again = attempt(variant, 1.0)
    return min((x for x in (plan, again) if isinstance(x, StepPlan)), key=lambda x: x.seconds)


def best_compiled(variants: Sequence[Captured], request: Request, budget_bytes: int) -> StepPlan:
    """Plan the quickest of some variants that a compiler is asked of, which takes long.

    First come those that fit if nothing runs again, and none is asked of that is hardly quicker
    than a plan that was found.

    Args:
        variants, request, budget_bytes: as for ``best_plan``.

    Raises:
        InfeasibleBudget: as ``best_plan`` does.
    """

    def order(variant: Captured) -> tuple[bool, float]:
        assert variant.compiled is not None, "so are all variants of a step"
        held = variant.compiled.asked(plain_schedule(variant.graph)).peak_bytes
        return held > budget_bytes, variant.graph.seconds

    begun, best = time.perf_counter(), None
    beyond = list[InfeasibleBudget]()
    ahead = sorted(variants, key=order)
    for nth, variant in enumerate(ahead):
        if best is not None and variant.graph.seconds >= (1 - WORTH_ASKING) * best.seconds:
            continue
        left = limits_left(request, begun)
        limits = replace(left, seconds=left.seconds / (len(ahead) - nth))
        try:
            found = plan_captured(variant, replace(request, limits=limits), budget_bytes)
        except InfeasibleBudget as error:
            beyond.append(error)
        else:
            best = found if best is None or found.seconds < best.seconds else best
    if best is None:
        raise min(beyond, key=lambda error: error.least_bytes)
    return best


def plan_captured(captured: Captured, request: Request, budget_bytes: int) -> StepPlan:
    """Plan a captured step within a budget of bytes.

    Args:
        captured: the step.
        request: by which method, within which limits, and what the plan says of itself.
        budget_bytes: what the step may hold.

    Raises:
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    begun = time.perf_counter()
    found = _attempt(captured, request, budget_bytes)
    if isinstance(found, StepPlan):
        return found
    request = replace(request, limits=limits_left(request, begun))
    raise _infeasible(captured, request, budget_bytes, found)


def _infeasible(
    captured: Captured, request: Request, budget_bytes: int, reason: str
) -> InfeasibleBudget:
    """Make the error that says which budget would do where none was found, for a reason."""
    request.tell("looking for the least budget that works")
    graph = captured.graph
    if request.host is not None and request.host.states:
        *_, last = choices(captured, request)
        graph, request = last.graph, replace(request, offload=last.host)
    least, needed = least_budget(graph, request)
    return infeasible(graph, budget_bytes, least, reason, needed, host=request.host)


def _attempt(captured: Captured, request: Request, budget_bytes: int) -> StepPlan | str:
    """Plan a captured step, or say why no schedule was found."""
    from planner.running.engines import engine_of  # torch: only where something was captured

    graph, start = captured.graph, time.perf_counter()
    remarks: tuple[str, ...] = ()
    within = f"within {format_both(budget_bytes)} by {request.method}"
    request.tell(f"solving {len(graph.ops):,} ops {within}")
    states = held = None
    if request.host is not None and request.host.states:
        chosen = solve_with_states(captured, budget_bytes, request)
        solution, remarks = chosen.moved.solution, chosen.moved.remarks
        captured, states = replace(captured, graph=chosen.choice.graph), chosen.choice.states
    elif request.host is not None:
        moved = solve_within_host(graph, budget_bytes, request, request.host)
        solution, remarks = moved.solution, moved.remarks
    elif (settle := engine_of(request.engine).settle) is not None:
        settled = settle(captured, budget_bytes, request)
        captured, solution, remarks = settled.captured, settled.solution, settled.remarks
        held = settled.held_bytes
    else:
        solution = solve_within(graph, budget_bytes, request)
    if solution.schedule is None:
        return solution.message
    plan = plan_of(captured, request, budget_bytes, solution)
    plan = replace(plan, remarks=(*plan.remarks, *remarks), states=states, held_bytes=held)
    return replace(plan, solve_seconds=time.perf_counter() - start)


def plan_of(
    captured: Captured, request: Request, budget_bytes: int, solution: Solution
) -> StepPlan:
    """Return the plan that a solution with a schedule is for a captured step.

    Args:
        captured: what was solved.
        request: what the plan says of its device, optimizer, costs, method and engine.
        budget_bytes: the budget it was solved for.
        solution: what was found.
    """
    assert solution.schedule is not None, "there is nothing to plan with"
    unmeasured = tuple(unmeasured_times(request))
    return StepPlan(
        graph=captured.graph,
        schedule=solution.schedule,
        budget_bytes=budget_bytes,
        status=solution.status,
        bound_seconds=solution.bound_seconds,
        method=request.method,
        signature=captured.signature,
        device=request.hardware.name,
        optimizer=request.optimizer_name,
        costs=ESTIMATED if unmeasured else request.costs,
        engine=request.engine,
        rewrite=captured.rewrite,
        message=solution.message,
        hardware=request.hardware,
        loss=request.loss,
        remarks=(*_reserved(request), *beyond_the_device(request, budget_bytes), *unmeasured),
        allocator=allocator_of(request.allocator, request.hardware),
        host=request.host,
        eager_peak_bytes=captured.eager_peak_bytes,
    )


def _reserved(request: Request) -> tuple[str, ...]:
    if request.for_nccl_bytes:
        room = format_both(request.for_nccl_bytes)
        return (f"{room} of the budget are left to NCCL, as assumed; reserve= says otherwise",)
    if not request.reserve:
        return ()
    room = format_both(parse_budget(request.reserve))
    return (f"{room} of the budget are left to what else lives on the device (reserve=)",)
