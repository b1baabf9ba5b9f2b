"""A step as Inductor will run it: traced as ``torch.compile`` does, as the graph of its kernels.

Knows what the engine refuses. Nothing is compiled, and no kernel runs but to measure its workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from torch import Tensor, nn
from torch.optim import Optimizer

from planner.errors import BadRequest, CaptureError
from planner.graphs.capture.call_arguments import Arguments, arguments_of
from planner.graphs.capture.fused.compiled_step import compiled_step
from planner.graphs.capture.fused.frame import frame_of
from planner.graphs.capture.fused.identity import identity
from planner.graphs.capture.fused.in_chunks import in_chunks
from planner.graphs.capture.fused.other_calls import ALONE, Calls
from planner.graphs.capture.fused.prices import prices, workspaces
from planner.graphs.capture.guards.call import signature_of
from planner.graphs.capture.optimizer_step import OptimizerStep, asked_step
from planner.graphs.capture.rewrites import AS_CAPTURED, Declined
from planner.graphs.capture.training_step import Captured, has_data
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.torch_api.inductor.compiler import joint_step
from planner.graphs.torch_api.inductor.partitioner import JointStep, draws_outside
from planner.loss_chunks import KEEP
from planner.request import Request
from planner.running.compiled_model import step_of
from planner.running.planned_module import unplanned


def captured(request: Request, rewrite: str) -> Captured:
    """Capture the step that a person asked for, as Inductor will run it.

    Raises:
        CaptureError: Dynamo cannot take the step whole, or the model has no data.
        BadRequest: something is asked for that this engine does not do.
    """
    model = unplanned(request.model)
    _check(request, model)
    call = arguments_of(request.inputs, request.targets)
    trained = [p for p in model.parameters() if p.requires_grad]

    def captured_one(step: JointStep, name: str) -> Captured:
        return captured_joint(step, model, call, request, trained, rewrite=name)

    variant = variants_of(partial(_traced, request, model, call), captured_one)
    try:
        return variant(rewrite)
    except Declined as reason:
        raise CaptureError(f"it cannot be computed as {rewrite!r}: {reason}") from reason


def variants_of(
    traced: Callable[..., JointStep], captured_one: Callable[[JointStep, str], Captured]
) -> Callable[..., Captured]:
    """Return what captures a step by the name of a variant; it is traced once for all in chunks.

    Args:
        traced: traces the step, with ``keep=True`` the operators of losses as they are.
        captured_one: captures a traced step, which is the variant of a name.
    """
    traced = cache(traced)

    def variant(name: str = AS_CAPTURED.name, *, run: bool = True) -> Captured:
        rewritten = name != AS_CAPTURED.name
        step = traced(keep=rewritten)
        found = captured_one(in_chunks(step, name) if rewritten else step, name)
        return replace(found, variant=variant)

    return variant


def _traced(request: Request, model: nn.Module, call: Arguments, *, keep: bool) -> JointStep:
    args, kwargs, targets = call.rebuild(call.tensors)
    request.tell(f"tracing {type(model).__name__} as torch.compile does")
    function = step_of(type(model), request.loss)
    try:
        found = joint_step(function, model, args, kwargs, targets, keep=keep)
    except GraphsCaptureError as error:
        raise CaptureError(f"{error}; engine='op_by_op' may take it") from error
    if found is None:
        raise CaptureError(
            "no output requires grad, so there is no backward pass to plan; call model.train(), "
            "unfreeze a parameter, or return the loss"
        )
    return found


def captured_joint(
    step: JointStep,
    model: nn.Module,
    call: Arguments,
    request: Request,
    trained: Sequence[Tensor],
    *,
    rewrite: str = AS_CAPTURED.name,
    calls: Calls = ALONE,
) -> Captured:
    """Return the step that Inductor is about to cut as one to plan.

    Args:
        step: as Inductor hands it over.
        model: whose step it is.
        call: what it is called with.
        request: for which device and optimizer, by which costs.
        trained: the parameters that the optimizer steps.
        rewrite: which variant of the step it is.
        calls: how many of it wait for backward at once.

    Raises:
        CaptureError: the step draws random numbers that a plan cannot draw again, or is compiled
            for sizes that are symbols.
    """
    plannable(step)
    device = request.hardware
    optimizer = _optimizer_of_all(trained, request, calls)
    accumulate = request.accumulate
    frame = frame_of(step, model, device, optimizer=optimizer, accumulate=accumulate, calls=calls)
    request.tell("asking Inductor for its kernels")
    try:
        price = prices(device, here=True, costs=request.costs)
        found = compiled_step(step, frame, price, workspaces(device, here=True))
    except GraphsCaptureError as error:
        raise CaptureError(str(error)) from error
    signature = signature_of(model, call, loss=request.loss is not None)
    signature |= {
        "accumulate": request.accumulate,
        "dynamic": [],
        "checks": request.checks,
        "checked": [],
        "compiled": identity(found.stitched, calls.count),
    }
    return Captured(found.graph, signature, rewrite, compiled=found)


def _optimizer_of_all(
    trained: Sequence[Tensor], request: Request, calls: Calls
) -> OptimizerStep | None:
    """Return the step that holds the states of all calls' blocks, in a call's share of its time."""
    kernels = device_kind(request.hardware.name)
    blocks = [p if not i else p.detach() for i in range(calls.count) for p in trained]
    found = asked_step(blocks, request.optimizer, kernels)
    given = isinstance(request.optimizer, Optimizer | OptimizerStep)  # of all there is
    if found is None or given or calls.count == 1:
        return found
    return replace(found, moved_bytes=found.moved_bytes // calls.count)


def plannable(step: JointStep) -> None:
    """Refuse a step that no plan can be made for.

    Args:
        step: as Inductor hands it over.

    Raises:
        CaptureError: it draws random numbers that a plan cannot draw again, or is compiled for
            numbers that are symbols.
    """
    if draws_outside():
        raise CaptureError(
            "torch._inductor.config.fallback_random is set, with which numbers drawn again would "
            "be others; unset it, or use engine='op_by_op'"
        )
    if step.is_symbolic:
        raise CaptureError(
            "the step is compiled for numbers that are symbols, sizes or floats that change from "
            "call to call, so that its bytes are not known; leave torch._dynamo.mark_dynamic out, "
            "and pass a number that changes as a tensor of it"
        )


def device_kind(name: str) -> str:
    """Return the type of a device by its name in a plan."""
    return "cpu" if name == "cpu" else "cuda"


def _check(request: Request, model: nn.Module) -> None:
    if request.logits != KEEP:
        raise BadRequest(
            "logits='when_read' is not for engine='inductor', whose compiled step returns what it "
            "computes: have it return the loss alone, such as with loss=lambda output: output.loss"
        )
    if not isinstance(request.dynamic, str):
        raise BadRequest(
            "engine='inductor' compiles each size by itself: leave dynamic= out, and plan for the "
            "largest"
        )
    require_data(model)


def require_data(model: nn.Module) -> None:
    """Refuse a model without data.

    Args:
        model: as a person gave it.

    Raises:
        CaptureError: it is on meta.
    """
    if not has_data(model):
        raise CaptureError(
            "engine='inductor' asks the compiler, which needs a model with data on the device that "
            "it compiles for; this one is on meta"
        )
