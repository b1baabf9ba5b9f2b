"""A model whose calls are compiled under a plan, and what a call does that is not the planned one.

Dynamo's guards tell which calls a compiled step is for; a step that is traced anew comes here, and
is cut as the plan says if it is the planned one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planner.byte_sizes import format_both
from planner.errors import PlanMismatch
from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.fused.compiled_step import CompiledStep, held_bytes
from planner.graphs.capture.fused.frame import frame_of
from planner.graphs.capture.fused.identity import call_of, calls_of, identity
from planner.graphs.capture.fused.in_chunks import in_chunks
from planner.graphs.capture.fused.other_calls import Calls
from planner.graphs.capture.fused.prices import workspaces
from planner.graphs.capture.fused.rewritten import UnknownValue
from planner.graphs.capture.fused.stitched import Stitched, stitched
from planner.graphs.capture.guards.call import (
    Signature,
    differences,
    fake_call,
    fingerprint,
    signature_of,
)
from planner.graphs.capture.guards.call_form import in_form
from planner.graphs.capture.rewrites import AS_CAPTURED, Declined
from planner.graphs.capture.sizes import at_smaller_sizes
from planner.graphs.capture.training_step import optimizer_of
from planner.graphs.hardware.devices import device
from planner.graphs.torch_api.inductor.compiler import compiled_by, own_code
from planner.graphs.torch_api.inductor.inductor_kernels import Kernels
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, Partitioner
from planner.graphs.torch_api.inductor.whole_traces import traced_whole
from planner.graphs.torch_api.pytree import TreeSpec
from planner.plan.step_plan import StepPlan
from planner.progress import PlannerWarning
from planner.running.engines.engine import Applied
from planner.running.planned_module import derived, reclassed, unplanned
from planner.running.recent import Recent

Compiled = Callable[..., Any]
AGAIN = (
    "{} is compiled again for a call like one before: forward reads something of Python's that "
    "changes from call to call, such as a number that it counts, and each value of it is compiled "
    "by itself (TORCH_LOGS=recompiles names it): keep it in a tensor (register_buffer), or out of "
    "forward"
)


def step_of(base: type[nn.Module], loss: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return a step as a function: a model's forward, and the loss if there is one.

    Args:
        base: the class whose forward it is.
        loss: called with the output and the targets.
    """

    def step(
        model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], targets: Sequence[Any]
    ) -> Any:
        output = base.forward(model, *args, **kwargs)
        return output if loss is None else loss(output, *targets)

    return step


@dataclass
class _Planned:
    """Cuts the steps of a model as a plan says, and checks what the compiler makes of them."""

    plan: StepPlan
    model: nn.Module
    known: CompiledStep | None = None
    calls: set[tuple[str, ...]] = field(default_factory=set)

    def cut(self, step: JointStep) -> Halves:
        """Return forward and backward for the compiler."""
        if step.is_symbolic:
            raise PlanMismatch(
                "the call is compiled for sizes that are symbols, and a plan is for one size: "
                "leave torch._dynamo.mark_dynamic out"
            )
        plan = self.plan
        try:
            whole = stitched(variant_of(step, plan.rewrite))
        except Declined as reason:
            raise PlanMismatch(
                f"{type(self.model).__name__} has no loss any more that can be computed in chunks, "
                f"because {reason}; make the plan again with planner.fit"
            ) from reason
        if plan.signature["compiled"]["nodes"] != identity(whole)["nodes"]:
            raise PlanMismatch(
                f"{type(self.model).__name__} compiles to another step than the planned one; make "
                "the plan again with planner.fit"
            )
        self.known = step_under(plan, whole, self.model)
        if (call := call_of(whole)) in self.calls:
            message = AGAIN.format(type(self.model).__name__)
            warnings.warn(message, PlannerWarning, stacklevel=2)
        self.calls.add(call)
        try:
            return self.known.halves(plan.schedule)
        except UnknownValue as error:
            raise PlanMismatch(f"{error}; make the plan again with planner.fit") from error

    def check(self, first: Kernels, second: Kernels) -> None:
        """Refuse kernels that would hold more than the budget, another size's included."""
        assert self.known is not None, "it was cut before"
        within(self.known, first, second, self.plan.budget_bytes)


def variant_of(step: JointStep, rewrite: str) -> JointStep:
    """Return a step that is about to be compiled as a plan's variant of it.

    Args:
        step: with the operators of losses kept, if it is to be rewritten.
        rewrite: which variant.

    Raises:
        Declined: the step is another, that has none.
    """
    return step if rewrite == AS_CAPTURED.name else in_chunks(step, rewrite)


def step_under(plan: StepPlan, step: Stitched, model: nn.Module) -> CompiledStep:
    """Return a step that is about to be compiled as the one that a plan is for.

    Args:
        plan: of its kernels.
        step: with torch's own cut.
        model: whose step it is.
    """
    hardware = plan.hardware or device(plan.device)
    frame = frame_of(
        step.step,
        model,
        hardware,
        optimizer=optimizer_of(plan.graph),
        accumulate=bool(plan.signature["accumulate"]),
        calls=Calls(calls_of(plan.signature)),
    )
    return CompiledStep(step, frame, plan.graph, workspaces(hardware, here=True))


def within(step: CompiledStep, first: Kernels, second: Kernels, budget_bytes: int) -> None:
    """Refuse kernels, as they are about to be compiled, that would hold more than a budget.

    Args:
        step: whose they are.
        first, second: forward's and backward's.
        budget_bytes: what the step may hold.

    Raises:
        PlanMismatch: they hold more.
    """
    held = held_bytes(step, first, second)
    if held > budget_bytes:
        sizes = step.stitched.step.largest.numbers
        some = " at some size that it is for (dynamic=False compiles each by itself)"
        raise PlanMismatch(
            f"compiled for this call, the step would hold {format_both(held)}"
            f"{some if sizes else ''}, and the budget is {format_both(budget_bytes)}"
        )


def compiled_under(plan: StepPlan, model: nn.Module, applied: Applied) -> Compiled:
    """Return the compiled step of a plan; what it is not for raises ``PlanMismatch``.

    Args:
        plan: for the step.
        model: whose step it is.
        applied: on which class, with which loss.
    """
    planned = _Planned(plan, model)
    step = step_of(applied.base, applied.loss)
    keep = plan.rewrite != AS_CAPTURED.name
    return compiled_by(step, Partitioner(planned.cut), planned.check, keep=keep)


@dataclass
class _Runner:
    """A plan on a model: its compiled step, and calls that are none of its own."""

    plan: StepPlan
    applied: Applied
    compiled: Compiled
    spec: TreeSpec
    takes_targets: bool
    plain: set[Any] = field(default_factory=set)
    planned: Recent[Compiled] = field(default_factory=Recent)

    def call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the plan, another one, or the plain model."""
        loss = self.applied.loss is not None
        ours = loss and (self.takes_targets or kwargs.get("targets") is None)
        targets = kwargs.pop("targets", None) if ours else None
        args, kwargs = in_form(self.applied.base.forward, args, kwargs, self.spec)
        call = arguments(args, kwargs, targets)
        if not torch.is_grad_enabled():
            return self._plainly(model, call, loss=targets is not None)
        if self.takes_targets and targets is None:
            if not model.training:
                return self._plainly(model, call, loss=False)
            raise PlanMismatch(
                "the plan's loss takes targets and none came: pass targets=; in eval mode, or "
                "under torch.no_grad(), a call without them returns the model's output"
            )
        if self.plain or len(self.planned):
            key = fingerprint(list(model.modules()), call)
            if key in self.plain:
                return self._plainly(model, call, loss=loss)
            if key in self.planned:
                return self._planned(self.planned.get(key, lambda: self.compiled), model, call)
        try:
            return self._planned(self.compiled, model, call)
        except PlanMismatch as error:
            return self._otherwise(model, call, error)

    def _otherwise(self, model: nn.Module, call: Arguments, error: PlanMismatch) -> Any:
        """Do what the user wants on a mismatch."""
        key = fingerprint(list(model.modules()), call)
        if self.applied.on_mismatch == "plain":
            self.plain.add(key)
            return self._plainly(model, call, loss=self.applied.loss is not None)
        found = signature_of(unplanned(model), call, loss=self.applied.loss is not None)
        smaller = at_smaller_sizes(_of_any_size(self.plan.signature), call)
        is_smaller = smaller["leaves"] != self.plan.signature["leaves"] and not any(
            True for _ in differences(smaller, found)
        )
        if self.applied.replan and (is_smaller or self.applied.on_mismatch == "replan"):
            same = unplanned(model)
            again = self.applied.replan(self.plan, same, call, self.applied.loss)
            made = compiled_under(again, same, self.applied)
            return self._planned(self.planned.get(key, lambda: made), model, call)
        why = "; ".join([*differences(self.plan.signature, found, self.applied.base.forward)][:1])
        raise PlanMismatch(
            f"this call is not the planned one: {why or error}; plan for it with planner.fit, or "
            'choose plan.apply(model, on_mismatch="replan") or "plain"'
            + (f" ({error})" if why else "")
        ) from error

    def _planned(self, compiled: Compiled, model: nn.Module, call: Arguments) -> Any:
        """Run a plan, and let it be known that one ran."""
        output = _run(compiled, model, call)
        if self.applied.account is not None:
            self.applied.account.runs += 1
        return output

    def _plainly(self, model: nn.Module, call: Arguments, *, loss: bool) -> Any:
        args, kwargs, targets = call.rebuild(call.tensors)
        step = step_of(self.applied.base, self.applied.loss if loss else None)
        return step(model, args, kwargs, targets)


def _of_any_size(planned: Signature) -> Signature:
    """Return a signature that says of every tensor that it may be smaller."""
    leaves = enumerate(planned["leaves"])
    dynamic = [[i, list(range(len(leaf[0])))] for i, leaf in leaves if isinstance(leaf, list)]
    return {**planned, "dynamic": dynamic}


def forward(plan: StepPlan, model: nn.Module, applied: Applied) -> Callable[..., Any]:
    """Return what a planned model does when it is called.

    Args:
        plan: for the step.
        model: that it is applied to, the planned one.
        applied: on which class, with which loss, and what a mismatch does.

    Raises:
        PlanMismatch: the loss is missing.
    """
    if plan.signature["loss"] and applied.loss is None:
        raise PlanMismatch("the plan was made with a loss callable; pass the same one as loss=")
    planned = fake_call(plan.signature)
    targets = bool(planned.rebuild(planned.tensors)[2])
    runner = _Runner(plan, applied, compiled_under(plan, model, applied), planned.spec, targets)

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return runner.call(self, args, kwargs)

    return run


def without_plan(model: nn.Module, loss: Callable[..., Any] | None) -> nn.Module:
    """Return a model that Inductor compiles as it does by default, called as a planned one.

    Args:
        model: that is compiled.
        loss: compiled with it, if it is called with ``targets=``.
    """
    base = type(model)
    compiled = torch.compile(own_code(step_of(base, loss)), fullgraph=True, dynamic=False)

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        targets = kwargs.pop("targets", None) if loss is not None else None
        return _run(compiled, self, arguments(args, kwargs, targets))

    return reclassed(model, derived(base, run))


def _run(compiled: Compiled, model: nn.Module, call: Arguments) -> Any:
    args, kwargs, targets = call.rebuild(call.tensors)
    with traced_whole():
        return compiled(model, args, kwargs, targets)
