"""From a captured step and a budget to a plan: solve, judge, say why not.

Knows which error each step can end in. How steps are captured and run is the engines' to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.allocator_budget import allocator_of, least_budget, solve_within
from planner.byte_sizes import format_both, parse_budget
from planner.errors import BadRequest, InfeasibleBudget
from planner.graphs.hardware.devices import DeviceSpec
from planner.plan.advice import infeasible
from planner.plan.step_plan import StepPlan
from planner.request import Request, request_of
from planner.solvers import Limits, Solution

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.step_function import Arguments
    from planner.graphs.capture.training_step import Captured

LEAST_SECONDS = 5.0
"""What a solver may take to plan again, however quick the first plan was."""


def captured_step(request: Request, rewrite: str = "as_captured") -> Captured:
    """Capture the step that a person asked for, as the graph that its engine will run.

    Raises:
        CaptureError: the step cannot be captured.
        BadRequest: the engine does not run what the model is.
    """
    from planner.graphs.capture.placed import is_parallelized
    from planner.running.engines import engine_of  # torch: only where something is captured

    engine = engine_of(request.engine)
    if not engine.sharded and is_parallelized(request.model):
        raise BadRequest(
            f"engine={request.engine!r} is for models that are on one device so far, and this one "
            "is parallelized over ranks: leave engine= out"
        )
    return engine.captured(request, rewrite)


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
        CaptureError: the step cannot be captured.
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    start = time.perf_counter()
    variants = {v.rewrite: v for name in request.rewrites for v in [captured_step(request, name)]}
    spent = time.perf_counter() - start
    plans, refused = list[StepPlan](), list[InfeasibleBudget]()
    for captured in variants.values():
        try:
            plans.append(plan_captured(captured, request, budget_bytes))
        except InfeasibleBudget as error:
            refused.append(error)
    if not plans:
        raise min(refused, key=lambda error: error.least_bytes)
    return replace(min(plans, key=lambda plan: plan.seconds), capture_seconds=spent)


def plan_captured(captured: Captured, request: Request, budget_bytes: int) -> StepPlan:
    """Plan a captured step within a budget of bytes.

    Args:
        captured: the step.
        request: by which method, within which limits, and what the plan says of itself.
        budget_bytes: what the step may hold.

    Raises:
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.
    """
    from planner.running.engines import engine_of  # torch: only where something was captured

    graph, start = captured.graph, time.perf_counter()
    remarks: tuple[str, ...] = ()
    within = f"within {format_both(budget_bytes)} by {request.method}"
    request.tell(f"solving {len(graph.ops):,} ops {within}")
    if (settle := engine_of(request.engine).settle) is not None:
        settled = settle(captured, budget_bytes, request)
        captured, solution, remarks = settled.captured, settled.solution, settled.remarks
    else:
        solution = solve_within(graph, budget_bytes, request)
    if solution.schedule is None:
        request.tell("looking for the least budget that works")
        least, needed = least_budget(graph, request)
        raise infeasible(graph, budget_bytes, least, solution.message, needed)
    plan = plan_of(captured, request, budget_bytes, solution)
    plan = replace(plan, remarks=(*plan.remarks, *remarks))
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
        costs=request.costs,
        engine=request.engine,
        rewrite=captured.rewrite,
        message=solution.message,
        hardware=request.hardware,
        loss=request.loss,
        remarks=_reserved(request),
        allocator=allocator_of(request.allocator, request.hardware),
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


def _device_of(plan: StepPlan, model: nn.Module) -> DeviceSpec:
    """Return what to plan for: what a plan was for, or where the model is if that is elsewhere."""
    from planner.graphs.capture.guards.call import device_of, kernels_of

    planned_on, here = plan.signature["autocast"][0], device_of(model).type
    same = planned_on == kernels_of(plan.signature) == here
    return plan.hardware or plan.device if same else "auto"


def plan_again(
    plan: StepPlan, model: nn.Module, call: Arguments, loss: Callable[..., Any] | None
) -> StepPlan:
    """Plan another call of a model with the budget, method, device, costs and engine of a plan.

    It takes a fraction of the plan's own time: the loop waits for it.

    Args:
        plan: what to go by.
        model: in the modes of the call.
        call: what the model is called with; it is found again by its very sizes, or if it says
            what it answers to the model's questions, it is the largest one, as the plan's own.
        loss: the callable that the plan was made with.

    Raises:
        CaptureError, InfeasibleBudget: as ``planner.fit`` does.
    """
    from planner.graphs.capture.training_step import optimizer_of

    said = {
        "inputs": call,
        "loss": loss,
        "optimizer": optimizer_of(plan.graph),
        "device": _device_of(plan, model),
        "costs": plan.costs,
        "engine": plan.engine,
        "rewrites": (plan.rewrite,),
        "method": plan.method,
        "accumulate": bool(plan.signature["accumulate"]),
        "checks": plan.signature.get("checks", "keep"),
        "allocator": plan.allocator or "auto",
        "limits": Limits(seconds=max(LEAST_SECONDS, plan.solve_seconds / 4)),
        "dynamic": "off" if call.answers is None else plan.signature["dynamic"],
        "progress": "off",
    }
    again = plan_step(request_of(model, said), plan.budget_bytes)
    return replace(again, optimizer=plan.optimizer)
