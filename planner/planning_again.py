"""Another call of a model, planned as the first was: what a loop waits for while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.graphs.expert_capacity import CAPACITY_FACTOR
from planner.graphs.hardware.devices import DeviceSpec
from planner.plan.step_plan import StepPlan
from planner.planning import plan_step
from planner.request import request_of
from planner.request_defaults import find_device
from planner.solvers import Limits

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.call_arguments import Arguments

LEAST_SECONDS = 5.0
"""What a solver may take to plan again, however quick the first plan was."""


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

    device = find_device(_device_of(plan, model), model)
    said = {
        "inputs": call,
        "loss": loss,
        "optimizer": optimizer_of(plan.graph),
        "device": device,
        "costs": plan.costs,
        "engine": plan.engine,
        "rewrites": (plan.rewrite,),
        "method": plan.method,
        "accumulate": bool(plan.signature["accumulate"]),
        "checks": plan.signature.get("checks", "keep"),
        "capacity_factor": plan.capacity_factor or CAPACITY_FACTOR,
        "allocator": "auto" if device.name == "cpu" else plan.allocator or "auto",
        "offload": None if plan.host is None else replace(plan.host, states=False),
        "limits": Limits(seconds=max(LEAST_SECONDS, plan.solve_seconds / 4)),
        "dynamic": "off" if call.answers is None else plan.signature["dynamic"],
        "progress": "off",
    }
    again = plan_step(request_of(model, said), plan.budget_bytes)
    again = replace(again, optimizer=plan.optimizer, host=plan.host)
    if plan.states is None:
        return again
    return replace(
        again,
        states=replace(
            plan.states,
            kept_seconds=again.plain_seconds,
            kept_peak_bytes=again.plain_peak_bytes + plan.states.moved_bytes,
        ),
    )


def _device_of(plan: StepPlan, model: nn.Module) -> DeviceSpec:
    """Return what to plan for: what a plan was for, or where the model is if that is elsewhere."""
    from planner.graphs.capture.guards.call import device_of, kernels_of

    planned_on, here = plan.signature["autocast"][0], device_of(model).type
    same = planned_on == kernels_of(plan.signature) == here
    return plan.hardware or plan.device if same else "auto"
