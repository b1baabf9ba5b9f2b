"""``apply``: a model that runs a plan, and the guards that keep it honest.

The planned model runs the plan when a call is the planned one. Without gradients it runs plain;
anything else is a mismatch, and the user has chosen what that means. How programs are written is
the engine's to know, and how another call is planned is handed in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from planner.errors import OtherKernels, PlanMismatch, PlannerError
from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.guards.call import (
    autocast_as,
    device_of,
    fake_call,
    model_differences,
    signature_of,
)
from planner.graphs.capture.guards.call_form import in_form
from planner.graphs.capture.placed import meshes_of
from planner.graphs.torch_api.dispatch import inside_a_transform
from planner.plan.step_plan import StepPlan
from planner.progress import PlannerWarning
from planner.running.branches import program_of
from planner.running.engines import engine_of
from planner.running.engines.engine import Applied
from planner.running.one_plan import all_or_none, digest, groups_to_ask, require_one_plan
from planner.running.optimizer_watch import watch_optimizer
from planner.running.out_of_memory import Account
from planner.running.planned_module import derived, reclassed, unplanned
from planner.running.program import Program
from planner.running.run_step import run, tell_failed
from planner.running.runtime import Replan, Runtime, planned_anew, runtime_of

MISMATCH = ("error", "replan", "plain")
_FORMER = {"original": "plain"}  # until 0.3


def apply(
    plan: StepPlan,
    model: nn.Module,
    *,
    on_mismatch: str = "error",
    loss: Callable[..., Any] | None = None,
    replan: Replan | None = None,
) -> nn.Module:
    """Return a model with the same parameters that runs the plan's schedule, frees included.

    The model given stays as it was and shares every tensor with the one returned. With a plan made
    with ``loss=``, the returned model is called with the model's own arguments and ``targets=``,
    and returns the loss. Without targets it returns the model's output, under ``torch.no_grad()``
    and in eval mode.

    Args:
        plan: made for this model, by ``fit`` or ``load``.
        model: on its device, in the modes the plan was made for.
        on_mismatch: what a call does that is not the planned one nor a smaller one (a larger shape,
            another dtype, mode, autocast, frozen parameter): "error" raises ``PlanMismatch``,
            "replan" makes and runs a plan for it within the same budget, "plain" runs the model
            without a plan, whose memory nothing limits. Calls under ``torch.no_grad()`` always run
            plain.
        loss: the callable the plan was made with, if the plan was loaded from a file.
        replan: makes the plan of another call; needed for "replan".

    A model whose step communicates, as one that is parallelized over ranks, is given to this
    function on all of them.

    Raises:
        PlanMismatch: the model is not the one the plan was made for, or other ranks that its
            step communicates with have another plan; the message says why. A plan that the model
            already runs is replaced.
        ValueError: an unknown ``on_mismatch``.
    """
    account = Account(plan)
    cls = planned_class(
        plan, model, on_mismatch=on_mismatch, loss=loss, replan=replan, account=account
    )
    patched = reclassed(model, cls)
    watch_optimizer(account, patched)
    return patched


def planned_class(
    plan: StepPlan,
    model: nn.Module,
    *,
    on_mismatch: str = "error",
    loss: Callable[..., Any] | None = None,
    replan: Replan | None = None,
    account: Account | None = None,
    compared: bool = True,
) -> type[nn.Module]:
    """Return a class derived from a model's own whose ``forward`` runs the plan.

    Args:
        plan, model, on_mismatch, loss, replan: as for ``apply``, which raises the same errors.
        account: what was planned for the whole device, to be told if memory runs out.
        compared: with the plans of ranks that share the step; else the caller has done so.
    """
    ranks = _groups_of(model, plan) if compared else []
    with all_or_none(ranks) as told:
        model = unplanned(model)
        base, loss = type(model), loss or plan.loss
        on_mismatch = checked_mismatch(on_mismatch, MISMATCH if replan else ("error", "plain"))
        told["on_mismatch"] = on_mismatch
        require_own_forward(model)
        if (compiled := engine_of(plan.engine).forward) is not None:
            require_planned(plan, model)
            applied = Applied(base, loss, on_mismatch, replan, account)
            return derived(base, compiled(plan, model, applied))
        runtime = _runtime(plan, model, loss, replan)
        groups = runtime.variants.last_used.groups
        _require_no_replan(on_mismatch, groups)
        told["plan"] = digest(runtime.plan)
    if compared:
        known = {group.group_name for group in ranks}
        require_one_plan(runtime.plan, [name for name in groups if name not in known])
    runtime = replace(
        runtime,
        on_mismatch=on_mismatch,
        replan=None if groups else replan,
        account=account,
    )

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return dispatch(self, base, runtime, args, kwargs)

    return derived(base, forward)


def require_own_forward(model: nn.Module) -> None:
    if "forward" in vars(model):
        raise PlanMismatch(
            "model.forward was replaced on the instance, so a plan would run something else; apply "
            "the plan first and wrap the model it returns"
        )


def _require_no_replan(on_mismatch: str, groups: Sequence[str]) -> None:
    if groups and on_mismatch == "replan":
        raise PlanMismatch(
            'on_mismatch="replan" would plan on each rank by itself, and ranks that share a step '
            'have to run one plan: choose "plain", or plan the largest call'
        )


def _groups_of(model: nn.Module, plan: StepPlan) -> list[Any]:
    """Return the process groups of ranks that a model, or a plan's, is parallelized over."""
    meshes, planned = meshes_of(model), plan.signature.get("mesh", [])
    return groups_to_ask(meshes, math.prod(planned)) if meshes or planned else []


def require_planned(plan: StepPlan, model: nn.Module) -> None:
    """Refuse another model than that of a plan, by its tensors and modules.

    Args:
        plan: whose signature tells.
        model: as it is.

    Raises:
        PlanMismatch: it is another; the message says why.
    """
    for difference in model_differences(plan.signature, signature_of(model, arguments((), {}))):
        raise PlanMismatch(f"the plan is not for this model: {difference}")


def _runtime(
    plan: StepPlan, model: nn.Module, loss: Callable[..., Any] | None, replan: Replan | None
) -> Runtime:
    """Return a plan ready to run, made anew if this device runs other kernels than were planned."""
    try:
        return runtime_of(plan, model, loss)
    except OtherKernels as error:
        if replan is None:
            raise
        call = fake_call(plan.signature, home=device_of(model))
        call = replace(call, answers=tuple(plan.signature["answers"]))
        with autocast_as(plan.signature, device_of(model).type):
            again = replan(plan, model, call, loss)
        warnings.warn(
            f"the plan for {plan.device} is made anew for {again.device}, within the same budget: "
            f"{error}",
            PlannerWarning,
            stacklevel=5,
        )
        return runtime_of(again, model, loss)


def checked_mismatch(on_mismatch: str, valid: tuple[str, ...]) -> str:
    """Return what a mismatch does, by today's name.

    Raises:
        ValueError: it is none of the valid ones.
    """
    if on_mismatch in _FORMER:
        today = _FORMER[on_mismatch]
        warnings.warn(
            f"on_mismatch={on_mismatch!r} is called {today!r} now; the former name goes with 0.3",
            DeprecationWarning,
            stacklevel=4,
        )
        on_mismatch = today
    if on_mismatch not in valid:
        raise ValueError(f"on_mismatch is {on_mismatch!r}; expected one of {', '.join(valid)}")
    return on_mismatch


def dispatch(
    model: nn.Module,
    base: type[nn.Module],
    runtime: Runtime,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the plan, the plain model, or what the user wants on a mismatch.

    Args:
        model: that is called.
        base: its class without a plan.
        runtime: of the plan.
        args, kwargs: what it is called with; ``targets`` among them are the loss's.
    """
    ours = runtime.loss is not None and (runtime.targets or kwargs.get("targets") is None)
    targets = kwargs.pop("targets", None) if ours else None
    args, kwargs = in_form(base.forward, args, kwargs, runtime.spec)
    call = arguments(args, kwargs, targets)
    loss = runtime.loss if targets is not None else None  # else the model's output is wanted
    if not torch.is_grad_enabled():
        return _plain(model, base, loss, call)
    program = _program_or_reason(runtime, model, call)
    if isinstance(program, Program):
        return run(program, model, call, runtime.held, runtime.account)
    if runtime.loss is not None and targets is None and not model.training:
        return _plain(model, base, None, call)
    if runtime.targets and targets is None:
        raise PlanMismatch(
            "the plan's loss takes targets and none came: pass targets=; in eval mode, or under "
            "torch.no_grad(), a call without them returns the model's output"
        )
    if runtime.on_mismatch == "plain":
        return _plain(model, base, runtime.loss, call)
    if runtime.on_mismatch == "replan":
        again = _replanned(runtime, model, call)
        return run(again, model, call, runtime.held, runtime.account)
    raise PlanMismatch(
        f"this call is not the planned one: {program}; plan for it with planner.fit, or choose "
        'plan.apply(model, on_mismatch="replan") or "plain"'
    )


def _program_or_reason(runtime: Runtime, model: nn.Module, call: Arguments) -> Program | str:
    if inside_a_transform():
        return "it is inside torch.func or forward-mode autograd, which a plan's kernels lack"
    try:
        found = program_of(runtime, model, call)
    except PlannerError as error:
        return str(error)
    if isinstance(found, Program):
        return found
    if found.failed is not None:
        tell_failed(found.failed)
    return found.text


def _plain(
    model: nn.Module, base: type[nn.Module], loss: Callable[..., Any] | None, call: Arguments
) -> Any:
    args, kwargs, targets = call.rebuild(call.tensors)
    output = base.forward(model, *args, **kwargs)
    return output if loss is None else loss(output, *targets)


def _replanned(runtime: Runtime, model: nn.Module, call: Arguments) -> Program:
    """Return the program of another call within the same budget, planned once per kind of call."""

    def serves(known: Runtime) -> bool:
        return isinstance(known.variants.of(model, call), Program)

    key = runtime.variants.key(model, call)
    made = runtime.replanned.get(key, lambda: planned_anew(runtime, model, call), serves)
    program = made.variants.of(model, call)
    if not isinstance(program, Program):
        raise PlanMismatch(f"the step planned anew is not this call's: {program.text}")
    return program
