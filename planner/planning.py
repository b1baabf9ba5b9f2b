"""From a captured step and a budget to a plan: solve, judge, say why not.

Knows which error each step can end in. How steps are captured and run is the engines' to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.allocator_budget import (
    allocator_of,
    least_budget,
    limits_left,
    runs,
    solve_within,
)
from planner.byte_sizes import format_both, parse_budget
from planner.errors import BadRequest, InfeasibleBudget
from planner.graphs import Graph, plain_schedule, simulate
from planner.host_budget import solve_within_host
from planner.host_states import choices, solve_with_states
from planner.loss_chunks import AUTO, names, refused
from planner.plan.advice import cut_short, infeasible
from planner.plan.chunk_notes import WORTH_SAYING, hinted, said, saving
from planner.plan.step_plan import StepPlan
from planner.request import CAPACITY_FACTOR, Request
from planner.request_notes import ESTIMATED, beyond_the_device, unmeasured_times
from planner.solvers import Solution
from planner.solvers.api import floor_bytes
from planner.solvers.given_order import STOPPED
from planner.solvers.minimum_budget import proven_floor

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured

AS_CAPTURED = "as_captured"


def captured_step(request: Request, rewrite: str = "as_captured") -> Captured:
    """Capture the step that a person asked for, as the graph that its engine will run.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: the engine does not run what the model is, or moves no values.
    """
    from planner.graphs.capture.placed import is_parallelized
    from planner.running.engines import engine_of  # torch: only where something is captured

    engine = engine_of(request.engine)
    refuse_for_engine(request.engine, moves=request.host is not None)
    if not engine.parallelized and is_parallelized(request.model):
        raise BadRequest(
            f"engine={request.engine!r} is for models that are on one device so far, and this one "
            "is parallelized over ranks: leave engine= out"
        )
    found = engine.captured(request, rewrite)
    if request.capacity_factor != CAPACITY_FACTOR and "capacity_factor" not in found.signature:
        raise BadRequest(
            f"capacity_factor={request.capacity_factor} would have no effect: the step sends no "
            "tokens to experts of other ranks in numbers that the router decides; leave it out"
        )
    return found


def refuse_for_engine(name: str, *, moves: bool = False, chunks: bool = False) -> None:
    """Refuse what an engine does not do so far.

    Args:
        name: of the engine.
        moves: values or states may move to the host.
        chunks: the loss may be computed in chunks.

    Raises:
        BadRequest: the engine does not do that.
        UnknownEngine: there is none of that name.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    engine = engine_of(name)
    if moves and not engine.moves_values:
        raise BadRequest(f"offload= is not for engine={name!r} so far: leave one of them out")
    if chunks and engine.program is None:
        raise BadRequest(f"loss_chunks= is not for engine={name!r} so far: leave one of them out")


def captured_variant(request: Request) -> Captured:
    """Capture the step that a person asked for, its loss in as many chunks as they said.

    Of the forms that a loss in chunks may have it is the one whose plain step holds least.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: its loss cannot be had so, or the number of chunks was left to a plan.
    """
    if request.loss_chunks == AUTO:
        raise BadRequest(
            f'loss_chunks="{AUTO}" lets a plan choose for its budget: here say a number, such as 8'
        )
    return min(captured_variants(request), key=_plain_peak)


def captured_variants(request: Request) -> list[Captured]:
    """Capture all variants of a step among which its loss in chunks lets a plan choose.

    Where a plan may choose the number, the step as it is comes first. Left out is what is never
    better: what takes no less time than another that, with every op run once, holds no more than
    what every schedule of it holds.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: its loss cannot be had in the chunks that were asked for.
    """
    whole = captured_step(request)
    if request.loss_chunks == 1:
        return [whole]
    refuse_for_engine(request.engine, chunks=True)
    variants = _in_chunks(whole, request)
    if request.loss_chunks == AUTO:
        variants = [whole, *variants]
    peaks = [(v.graph.seconds, _plain_peak(v)) for v in variants]

    def is_beaten(variant: Captured) -> bool:
        floor, seconds = _floor(request)(variant.graph), variant.graph.seconds
        return any(other < seconds and peak <= floor for other, peak in peaks)

    return [v for v in variants if v is whole or not is_beaten(v)]


def _floor(request: Request) -> Callable[[Graph], int]:
    """Return what says which bytes every schedule holds: what may move can go below the others."""
    return proven_floor if request.host is None else floor_bytes


def _plain_peak(captured: Captured) -> int:
    """Return what a step holds with every op run once."""
    return simulate(captured.graph, plain_schedule(captured.graph)).peak_bytes


def refuse_asked(request: Request, what: str) -> None:
    """Refuse what speaks of many budgets, where the bytes of each schedule have to be asked for.

    Args:
        request: whose engine it is.
        what: is refused.

    Raises:
        BadRequest: what a schedule holds is the engine's compiler's to say.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    if engine_of(request.engine).settle is not None:
        raise BadRequest(
            f"{what} is not for engine={request.engine!r} so far, whose compiler says what each "
            "schedule holds: plan with planner.fit, one budget and size at a time"
        )


def plan_step(request: Request, budget_bytes: int) -> StepPlan:
    """Capture a step and plan it within a budget of bytes: the best of its variants.

    Raises:
        BadRequest: its loss is asked for in chunks and cannot be had so.
        CaptureError: the step cannot be captured.
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    start = time.perf_counter()
    if request.loss_chunks == 1:
        found = {v.rewrite: v for name in request.rewrites for v in [captured_step(request, name)]}
        whole, *_ = variants = list(found.values())
    else:
        refuse_for_engine(request.engine, chunks=True)
        whole = captured_step(request)
        variants = _among(whole, request, budget_bytes)
    begun = time.perf_counter()
    spent = begun - start
    try:
        plan = best_plan(variants, request, budget_bytes)
    except InfeasibleBudget as error:
        left = replace(request, limits=limits_left(request, begun))
        raise error.with_more(_least_in_chunks(error.least_bytes, whole, left)) from error
    plan = replace(plan, capture_seconds=spent)
    if whole.rewrite != AS_CAPTURED:
        return plan
    remark = saving(whole) if plan.rewrite == AS_CAPTURED else said(plan, whole)
    return plan.with_remark(remark) if remark else plan


def _least_in_chunks(least_bytes: int, whole: Captured, request: Request) -> str:
    """Say which budget would be known to work with the loss in chunks, if a smaller one would."""
    found = hinted(whole) if request.loss_chunks == 1 and whole.rewrite == AS_CAPTURED else None
    if found is None:
        return ""
    request.tell("looking for the least budget with the loss in chunks")
    chunks, how = found
    least, needed = least_budget(chunks.graph, request, thorough=False)
    if least_bytes - needed < WORTH_SAYING * least_bytes:
        return ""
    return (
        f" Or compute the loss in chunks: with {how} the least budget known to work is "
        f"{format_both(needed)}{cut_short(least)}."
    )


def _among(whole: Captured, request: Request, budget_bytes: int) -> list[Captured]:
    """Return the variants among which a plan chooses; if it may, a step that fits stays as it is.

    Raises:
        BadRequest: the loss was asked for in chunks and cannot be had so.
    """
    if request.loss_chunks != AUTO:
        return _in_chunks(whole, request)
    if runs(whole.graph, plain_schedule(whole.graph), budget_bytes, request):
        return [whole]
    return [whole, *_in_chunks(whole, request)]


def _in_chunks(whole: Captured, request: Request) -> list[Captured]:
    """Return the variants of a step with its loss in chunks, none if only a plan may choose them.

    Raises:
        BadRequest: they were asked for and there is none.
    """
    from planner.graphs.capture.rewrites import Declined

    assert whole.variant is not None, "engines that cannot rewrite a step were refused"
    variants: list[Captured] = []
    reasons: list[str] = []
    for name in names(request.loss_chunks, request.logits):
        try:
            variants.append(whole.variant(name))
        except Declined as reason:
            reasons.append(str(reason))
    if not variants and request.loss_chunks != AUTO:
        raise refused(request.loss_chunks, reasons[0])
    return variants


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
    floor = _floor(request)
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
