"""``apply``: a model that runs a plan, and the guards that keep it honest.

The planned model runs the plan when a call is the planned one. Without gradients it runs the
original; anything else is a mismatch, and the user has chosen what that means. Knows nothing of how
programs are written, nor of how one model stands for another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.errors import PlanMismatch
from planner.graphs import Graph
from planner.graphs.capture.guards.call import (
    differences,
    fingerprint,
    model_differences,
    signature_of,
)
from planner.graphs.capture.guards.modules import Fixed, changes, fixed_in, quick_look
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.step_function import Arguments, arguments, unique_tensors
from planner.graphs.capture.training_step import recapture
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.running.autograd_node import execute
from planner.running.planned_module import derived, reclassed, unplanned
from planner.running.program import Program, build

if TYPE_CHECKING:
    from planner.plan.single import Plan

MISMATCH = ("error", "replan", "original")


@dataclass(frozen=True)
class Runtime:
    """A plan ready to run: its program, and what a call must look like."""

    plan: Plan
    program: Program
    joint: Joint
    fixed: Fixed
    loss: Callable[..., Any] | None
    on_mismatch: str
    replanned: list[Runtime] = field(default_factory=list)
    accepted: set[tuple[Any, ...]] = field(default_factory=set)

    def run(self, model: nn.Module, call: Arguments) -> Any:
        """Run the planned step's forward half; autograd will run the other."""
        parameters, buffers = unique_tensors(model)
        tensors = [*parameters.values(), *buffers.values(), *call.tensors]
        return self.joint.outputs.rebuild(execute(self.program, tensors))

    def mismatch(self, model: nn.Module, call: Arguments) -> str | None:
        """Say why a call is not the planned one, or ``None`` if it is."""
        modules = list(model.modules())
        try:
            seen = (fingerprint(modules, call), quick_look(modules, self.fixed.reads))
        except GraphsCaptureError as error:
            return str(error)
        if seen not in self.accepted:
            found = signature_of(model, call, loss=self.loss is not None)
            for difference in differences(self.plan.signature, found):
                return difference
            for change in changes(self.fixed, model):
                return change
            self.accepted.add(seen)
        if (broken := self.joint.decisions.broken_by(call.tensors)) is not None:
            return (
                f"the model asks for a value at {broken.source}; the plan was made for "
                f"{broken.answer}, these inputs give another"
            )
        return None


def apply(
    plan: Plan,
    model: nn.Module,
    *,
    on_mismatch: str = "error",
    loss: Callable[..., Any] | None = None,
) -> nn.Module:
    """Return a model with the same parameters that runs the plan's schedule, frees included.

    The model given stays as it was and shares every tensor with the one returned. With a plan made
    with ``loss=``, the returned model is called with the model's own arguments and ``targets=``,
    and returns the loss.

    Args:
        plan: made for this model, by ``fit`` or ``load``.
        model: on its device, in the modes the plan was made for.
        on_mismatch: what a call does that is not the planned one (another shape, dtype, mode,
            autocast, frozen parameter): "error" raises ``PlanMismatch``, "replan" makes and runs
            a plan for it within the same budget, "original" runs the unplanned model, whose memory
            nothing limits. Calls under ``torch.no_grad()`` always run the original.
        loss: the callable the plan was made with, if the plan was loaded from a file.

    Raises:
        PlanMismatch: the model is not the one the plan was made for; the message says why. A plan
            that the model already runs is replaced.
        ValueError: an unknown ``on_mismatch``.
    """
    cls = planned_class(plan, model, on_mismatch=on_mismatch, loss=loss)
    return reclassed(model, cls)


def planned_class(
    plan: Plan,
    model: nn.Module,
    *,
    on_mismatch: str = "error",
    loss: Callable[..., Any] | None = None,
) -> type[nn.Module]:
    """Return a class derived from a model's own whose ``forward`` runs the plan; see ``apply``."""
    if on_mismatch not in MISMATCH:
        raise ValueError(f"on_mismatch is {on_mismatch!r}; expected one of {', '.join(MISMATCH)}")
    model = unplanned(model)
    if "forward" in vars(model):
        raise PlanMismatch(
            "model.forward was replaced on the instance, so a plan would run something else; apply "
            "the plan first and wrap the model it returns"
        )
    runtime = _runtime(plan, model, on_mismatch, loss or plan.loss)
    base = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _dispatch(self, base, runtime, args, kwargs)

    return derived(base, forward)


def _runtime(
    plan: Plan, model: nn.Module, on_mismatch: str, loss: Callable[..., Any] | None
) -> Runtime:
    if plan.signature["loss"] and loss is None:
        raise PlanMismatch("the plan was made with a loss callable; pass the same one as loss=")
    joint, graph, lowering = _captured_again(plan, model, loss)
    if (difference := graph_difference(plan.graph, graph)) is not None:
        raise PlanMismatch(
            f"{type(model).__name__} does not do what the plan was made for: {difference}; make "
            "the plan again with planner.fit"
        )
    program = build(joint, lowering, plan.graph, plan.schedule)
    fixed = fixed_in(model, joint.reads)
    return Runtime(plan, program, _light(joint), fixed, loss, on_mismatch)


def _captured_again(plan: Plan, model: nn.Module, loss: Callable[..., Any] | None) -> Any:
    """Capture the planned call of a model, in the planned autocast state."""
    signature = plan.signature
    here = signature_of(model, arguments((), {}))
    for difference in model_differences(signature, here):
        raise PlanMismatch(f"the plan is not for this model: {difference}")
    device, *dtype = signature["autocast"]
    with ExitStack() as stack:
        chosen = getattr(torch, dtype[0]) if dtype else None
        stack.enter_context(torch.autocast(device, dtype=chosen, enabled=bool(dtype)))
        try:
            return recapture(model, dict(signature), loss)
        except GraphsCaptureError as error:
            raise PlanMismatch(f"the planned step can no longer be captured: {error}") from error


def _light(joint: Joint) -> Joint:
    """Drop the traced graph, which only the program needed."""
    empty: dict[Any, Any] = {}
    return replace(
        joint,
        module=torch.fx.GraphModule({}, torch.fx.Graph()),
        parameters=empty,
        buffers=empty,
        inputs=(),
        tangents=empty,
        forward_outputs=(),
        mutations=empty,
        gradients=(),
        rewired=frozenset(),
        reads=(),
    )


def graph_difference(planned: Graph, found: Graph) -> str | None:
    """Say where a captured graph stops being the planned one; the optimizer is not compared."""
    for a, b in zip(planned.ops, found.ops, strict=False):
        where = f"op {b.name!r} in {b.module or 'the model'} at {b.source or 'an unknown line'}"
        if (a.target, a.phase) != (b.target, b.phase):
            return f"{where} is a {b.target}, planned was {a.name!r}, a {a.target}"
        if (a.inputs, a.outputs) != (b.inputs, b.outputs):
            read, planned_read = (
                ", ".join(g.values[v].name for v in op.inputs)
                for g, op in ((found, b), (planned, a))
            )
            return f"{where}, a {b.target}, reads {read}; planned was {planned_read}"
    extra = len(found.ops) - len(planned.ops)
    if extra > 0 or extra < -1:
        return f"it has {len(found.ops)} ops, planned were {len(planned.ops)}"
    made = {v for op in found.ops for v in op.outputs}
    for v in sorted(made):
        if planned.values[v].size_bytes < found.values[v].size_bytes:
            return (
                f"value {found.values[v].name!r} has {found.values[v].size_bytes} bytes, planned "
                f"were {planned.values[v].size_bytes}"
            )
    return None


def _dispatch(
    model: nn.Module,
    base: type[nn.Module],
    runtime: Runtime,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the plan, the original, or what the user wants on a mismatch."""
    targets = kwargs.pop("targets", None) if runtime.loss is not None else None
    call = arguments(args, kwargs, targets)
    if not torch.is_grad_enabled():
        return _original(model, base, runtime.loss, call)
    reason = runtime.mismatch(model, call)
    if reason is None:
        return runtime.run(model, call)
    if runtime.on_mismatch == "original":
        return _original(model, base, runtime.loss, call)
    if runtime.on_mismatch == "replan":
        return _replanned(model, base, runtime, call).run(model, call)
    raise PlanMismatch(
        f"this call is not the planned one: {reason}; plan for it with planner.fit, or choose "
        'plan.apply(model, on_mismatch="replan") or "original"'
    )


def _original(
    model: nn.Module, base: type[nn.Module], loss: Callable[..., Any] | None, call: Arguments
) -> Any:
    args, kwargs, targets = call.rebuild(call.tensors)
    output = base.forward(model, *args, **kwargs)
    return output if loss is None else loss(output, *targets)


def _replanned(
    model: nn.Module, base: type[nn.Module], runtime: Runtime, call: Arguments
) -> Runtime:
    """Return a runtime for another call within the same budget, made once per kind of call."""
    from planner.fit import refit

    for known in runtime.replanned:
        if known.mismatch(model, call) is None:
            return known
    plain = reclassed(model, base)
    plan = refit(runtime.plan, plain, call, runtime.loss)
    made = _runtime(plan, plain, "error", runtime.loss)
    runtime.replanned.append(made)
    return made
