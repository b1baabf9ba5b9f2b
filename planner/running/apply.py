"""``apply``: a model that runs a plan, and the guards that keep it honest.

The planned model runs the plan when a call is the planned one. Without gradients it runs plain;
anything else is a mismatch, and the user has chosen what that means. How programs are written is
the engine's to know, and how another call is planned is handed in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from planner.errors import PlanMismatch
from planner.graphs.capture.guards.call import differences, fingerprint, signature_of
from planner.graphs.capture.guards.modules import Fixed, changes, fixed_in, quick_look
from planner.graphs.capture.sizes import (
    Sizes,
    at_smaller_sizes,
    sizes_of,
)
from planner.graphs.capture.step_function import Arguments, arguments, unique_tensors
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.served_sizes import too_large
from planner.plan.step_plan import StepPlan
from planner.running.autograd_node import execute
from planner.running.engines import engine_of
from planner.running.engines.engine import Sized
from planner.running.planned_module import derived, reclassed, unplanned
from planner.running.program import Program
from planner.running.recent import Recent

MISMATCH = ("error", "replan", "plain")
_FORMER = {"original": "plain"}  # until 0.3

SIZES = 32
"""For how many smaller sizes a program is kept."""

Replan = Callable[[StepPlan, nn.Module, Arguments, Callable[..., Any] | None], StepPlan]
"""Plans another call of a model within the budget of a plan, with the loss it was made with."""


@dataclass(frozen=True)
class Runtime:
    """A plan ready to run: its program, and what a call must look like."""

    plan: StepPlan
    program: Program
    fixed: Fixed
    loss: Callable[..., Any] | None
    on_mismatch: str
    replan: Replan | None
    replanned: Recent[Runtime] = field(default_factory=Recent)
    smaller: Recent[Runtime] = field(default_factory=lambda: Recent(SIZES))
    any_size: Recent[Sized] = field(default_factory=lambda: Recent(1))
    accepted: set[tuple[Any, ...]] = field(default_factory=set)

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes that the program is for, where they may be smaller."""
        leaves = self.plan.signature["leaves"]
        free = (leaves[i] for i, *_ in self.plan.signature.get("dynamic", ()))
        return tuple((tuple(shape), tuple(stride)) for shape, stride, *_ in free)

    def run(self, model: nn.Module, call: Arguments) -> Any:
        """Run the planned step's forward half; autograd will run the other."""
        parameters, buffers = unique_tensors(model)
        tensors = [*parameters.values(), *buffers.values(), *call.tensors]
        return self.program.outputs.rebuild(execute(self.program, tensors))

    def mismatch(self, model: nn.Module, call: Arguments) -> str | None:
        """Say why a call is not the planned one, or ``None`` if it is."""
        modules = list(model.modules())
        try:
            seen = (fingerprint(modules, call), quick_look(modules, self.fixed.reads))
        except GraphsCaptureError as error:
            return str(error)
        if seen not in self.accepted:
            found = signature_of(model, call, loss=self.loss is not None)
            for excess in too_large(self.plan.signature, found):
                return excess
            for difference in differences(self.plan.signature, found):
                return difference
            for change in changes(self.fixed, model):
                return change
            self.accepted.add(seen)
        if (broken := self.program.decisions.broken_by(call.tensors)) is not None:
            return (
                f"the model asks for a value at {broken.source}; the plan was made for "
                f"{broken.answer}, these inputs give another"
            )
        return None


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
    and returns the loss.

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

    Raises:
        PlanMismatch: the model is not the one the plan was made for; the message says why. A plan
            that the model already runs is replaced.
        ValueError: an unknown ``on_mismatch``.
    """
    cls = planned_class(plan, model, on_mismatch=on_mismatch, loss=loss, replan=replan)
    return reclassed(model, cls)


def planned_class(
    plan: StepPlan,
    model: nn.Module,
    *,
    on_mismatch: str = "error",
    loss: Callable[..., Any] | None = None,
    replan: Replan | None = None,
) -> type[nn.Module]:
    """Return a class derived from a model's own whose ``forward`` runs the plan.

    Args:
        plan, model, on_mismatch, loss, replan: as for ``apply``, which raises the same errors.
    """
    on_mismatch = checked_mismatch(on_mismatch, MISMATCH if replan else ("error", "plain"))
    model = unplanned(model)
    if "forward" in vars(model):
        raise PlanMismatch(
            "model.forward was replaced on the instance, so a plan would run something else; apply "
            "the plan first and wrap the model it returns"
        )
    runtime = _runtime(plan, model, loss or plan.loss, on_mismatch, replan)
    base = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _dispatch(self, base, runtime, args, kwargs)

    return derived(base, forward)


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


def _runtime(
    plan: StepPlan,
    model: nn.Module,
    loss: Callable[..., Any] | None,
    on_mismatch: str,
    replan: Replan | None,
) -> Runtime:
    if plan.signature["loss"] and loss is None:
        raise PlanMismatch("the plan was made with a loss callable; pass the same one as loss=")
    program = engine_of(plan.engine).program(plan, model, loss)
    return Runtime(plan, program, fixed_in(model, program.reads), loss, on_mismatch, replan)


def _dispatch(
    model: nn.Module,
    base: type[nn.Module],
    runtime: Runtime,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the plan, the plain model, or what the user wants on a mismatch."""
    targets = kwargs.pop("targets", None) if runtime.loss is not None else None
    call = arguments(args, kwargs, targets)
    if not torch.is_grad_enabled():
        return _plain(model, base, runtime.loss, call)
    try:
        serving = _at_sizes(model, base, runtime, call)
        reason = serving.mismatch(model, call)
    except PlanMismatch as error:
        reason = str(error)
    if reason is None:
        return serving.run(model, call)
    if runtime.on_mismatch == "plain":
        return _plain(model, base, runtime.loss, call)
    if runtime.on_mismatch == "replan":
        return _replanned(model, base, runtime, call).run(model, call)
    raise PlanMismatch(
        f"this call is not the planned one: {reason}; plan for it with planner.fit, or choose "
        'plan.apply(model, on_mismatch="replan") or "plain"'
    )


def _plain(
    model: nn.Module, base: type[nn.Module], loss: Callable[..., Any] | None, call: Arguments
) -> Any:
    args, kwargs, targets = call.rebuild(call.tensors)
    output = base.forward(model, *args, **kwargs)
    return output if loss is None else loss(output, *targets)


def _at_sizes(
    model: nn.Module, base: type[nn.Module], runtime: Runtime, call: Arguments
) -> Runtime:
    """Return the runtime for the sizes of a call: another, if they are smaller ones.

    The step is traced at these sizes. If it is the planned one, no value larger, the plan's
    schedule stays within its peak; if the model does something else then, that is planned.

    Raises:
        PlannerError: it cannot be traced or planned.
    """
    planned = runtime.plan.signature
    sizes = sizes_of(planned, call)
    if sizes == runtime.sizes:
        return runtime
    if sizes not in runtime.smaller and at_smaller_sizes(planned, call) is planned:
        return runtime  # which says what differs

    def make() -> Runtime:
        plain = reclassed(model, base)
        smaller = replace(runtime.plan, signature=at_smaller_sizes(planned, call))
        if runtime.smaller and (program := _of_any_size(runtime, plain, call)) is not None:
            fixed = fixed_in(plain, program.reads)
            return Runtime(smaller, program, fixed, runtime.loss, "error", None)
        try:
            return _runtime(smaller, plain, runtime.loss, "error", None)
        except PlanMismatch:
            if runtime.replan is None:
                raise
        plan = runtime.replan(runtime.plan, plain, call, runtime.loss)
        return _runtime(plan, plain, runtime.loss, "error", None)

    return runtime.smaller.get(sizes, make)


def _of_any_size(runtime: Runtime, plain: nn.Module, call: Arguments) -> Program | None:
    """Return the program written for all sizes at those of a call, if it serves them.

    It is written when a second smaller size comes: tracing one size costs less.
    """
    write = engine_of(runtime.plan.engine).of_any_size
    if write is None:
        return None
    try:
        sized = runtime.any_size.get((), lambda: write(runtime.plan, plain, runtime.loss))
    except PlanMismatch:  # sizes cannot be symbols in this model: each is traced
        return None
    return sized(call.tensors)


def _replanned(
    model: nn.Module, base: type[nn.Module], runtime: Runtime, call: Arguments
) -> Runtime:
    """Return a runtime for another call within the same budget, made once per kind of call."""
    replan, plain = runtime.replan, reclassed(model, base)
    assert replan is not None, "checked when the plan was applied"

    def make() -> Runtime:
        plan = replan(runtime.plan, plain, call, runtime.loss)
        return _runtime(plan, plain, runtime.loss, "error", None)

    modules = list(model.modules())
    key = (fingerprint(modules, call), quick_look(modules, runtime.fixed.reads))
    return runtime.replanned.get(key, make, lambda known: known.mismatch(model, call) is None)
