"""``capture``: from a model, example inputs and an optimizer to the graph of its training step.

Puts tracing, prices and the optimizer together. Knows nothing of budgets or schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from planner.graphs.capture.guards.call import class_name, device_type, fake_call, signature_of
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowering import Lowered, Lowering, Price, Role, assemble
from planner.graphs.capture.optimizer_step import OptimizerStep, optimizer_step
from planner.graphs.capture.passes.eager_semantics import normalized, with_layout_of
from planner.graphs.capture.step_function import Arguments, Inputs, arguments_of
from planner.graphs.capture.trace import trace
from planner.graphs.costs.cache import default_cache
from planner.graphs.costs.measured import Memory, measure_memory, measure_seconds
from planner.graphs.costs.operator_call import OperatorCall, new_storage_bytes
from planner.graphs.costs.roofline import op_cost, roofline_seconds, tensors_in
from planner.graphs.costs.workspace import estimate_workspace
from planner.graphs.graph import Graph, Kind, Phase
from planner.graphs.hardware import devices
from planner.graphs.hardware.detect import local_device
from planner.graphs.torch_api.fake_tensors import FakeTensor
from planner.graphs.torch_api.operators import OpOverload
from planner.graphs.torch_api.patches import capturing

COSTS = ("roofline", "measured")


@dataclass(frozen=True)
class Captured:
    """A training step and what it is valid for."""

    graph: Graph
    signature: dict[str, Any]


def capture(
    model: nn.Module,
    inputs: Inputs | Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: str = "auto",
    costs: str = "roofline",
    accumulate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Captured:
    """Capture one training step of a model without allocating it.

    Args:
        model: in the modes (train or eval, frozen or not, autocast) it will be trained in.
        inputs: a tensor, a tuple (positional) or a dict (keywords); real, fake or on meta.
        loss: called as ``loss(output, *targets)``; without it the model's scalar output or the
            one named ``loss`` is differentiated, else every output.
        targets: further arguments of ``loss``: a tensor or a tuple.
        optimizer: what ``optimizer_step`` takes; ``None`` leaves it out.
        device: a name of ``graphs.hardware.devices``; "auto" is where the model lives.
        costs: "roofline" or "measured" (times every distinct op on the model's device once).
            Workspace is measured, too, if the model is real and on ``device``; for a model on
            meta, or for another device, both are formulas.
        accumulate: gradients of earlier micro-batches are held while this one runs.
        progress: called with a word about what begins.

    Raises:
        CaptureError: the step cannot be captured; the message names the user's line.
        ValueError: an unknown device, optimizer or cost mode.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> found = capture(model, torch.zeros(2, 4), loss=torch.mean)
    >>> [op.target for op in found.graph.ops][:3]
    ['aten.addmm.default', 'aten.relu.default', 'aten.addmm.default']
    """
    found = capture_joint(
        model,
        arguments_of(inputs, targets),
        loss=loss,
        optimizer=optimizer,
        device=device,
        costs=costs,
        accumulate=accumulate,
        progress=progress,
    )
    return found.captured


@dataclass(frozen=True)
class Traced:
    """A captured step with what its graph was made from."""

    captured: Captured
    joint: Joint
    lowering: Lowering


@capturing()
def capture_joint(
    model: nn.Module,
    call: Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    device: str = "auto",
    costs: str = "roofline",
    accumulate: bool = False,
    eager: bool = False,
    real: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> Traced:
    """Do what ``capture`` does and keep the traced nodes.

    Args:
        model, loss, optimizer, device, costs, accumulate, progress: as for ``capture``.
        call: the flattened inputs and targets.
        eager: torch will run the step itself, with its own dropout and no kernel writing into
            what the one before it made.
        real: whether kernels may be run here; by default those of a model that has data.
    """
    if costs not in COSTS:
        raise ValueError(f"unknown costs {costs!r}; expected one of {', '.join(COSTS)}")
    tell = progress or (lambda _: None)
    kind = device_type(model, call)
    home = devices.cpu() if kind == "cpu" else local_device()
    where = home if device == "auto" else devices.device(device)
    tell("capturing forward and backward")
    lean = not (eager and where.name == "cpu")
    joint = normalized(trace(model, call, loss=loss, lean=lean))
    tell("pricing operators")
    # a model without data is planned for elsewhere: its kernels may be far too large to run here
    here = where.name == home.name and (has_data(model) if real is None else real)
    prices = _prices(joint, where, here=here, timed=costs == "measured")
    tell("running the optimizer on fake tensors")
    wanted = [n for n, p in model.named_parameters() if p.requires_grad]
    trainable = [joint.parameters[n].meta["val"] for n in wanted]
    known = optimizer is None or isinstance(optimizer, OptimizerStep)
    step = optimizer if known else optimizer_step(trainable, optimizer)
    graph, lowering = assemble(
        joint,
        prices.__getitem__,
        optimizer=step,
        optimizer_seconds=0.0 if step is None else step.moved_bytes / where.bytes_per_second(),
        granularity_bytes=where.granularity_bytes,
        reserve_bytes=where.reserve_bytes,
        accumulate=accumulate,
        eager=eager,
        name=class_name(model),
    )
    answers = joint.decisions.answers
    signature = signature_of(model, call, answers=answers, loss=loss is not None)
    return Traced(Captured(graph, signature | {"accumulate": accumulate}), joint, lowering)


def has_data(model: nn.Module) -> bool:
    """Tell whether all parameters are more than a shape.

    >>> has_data(nn.Linear(2, 2)), has_data(nn.Linear(2, 2, device="meta"))
    (True, False)
    """
    return not any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters())


@capturing()
def recapture(
    model: nn.Module, signature: dict[str, Any], loss: Callable[..., Any] | None
) -> tuple[Joint, Graph, Lowering]:
    """Capture again, without prices, the step a signature describes, in order to run it.

    Args:
        model: the one the signature was made of.
        signature: of the model and its call.
        loss: the callable that the step was captured with, if any.
    """
    members = [*model.parameters(), *model.buffers()]
    mode = next((t.fake_mode for t in members if isinstance(t, FakeTensor)), None)
    call = fake_call(signature, mode)
    joint = normalized(trace(model, call, loss=loss, answers=signature["answers"]))
    free = Price(0.0, 0, 0, 0)
    graph, lowering = assemble(
        joint, lambda _: free, optimizer=None, accumulate=signature["accumulate"]
    )
    ops = (*lowering.ops, Lowered(Role.OPTIMIZER))  # whatever optimizer the plan counted
    return joint, graph, replace(lowering, ops=ops)


def optimizer_of(graph: Graph) -> OptimizerStep | None:
    """Return the optimizer step that a captured graph ends with.

    >>> import torch
    >>> found = capture(nn.Linear(4, 1), torch.zeros(2, 4), optimizer="sgd")
    >>> optimizer_of(found.graph).state_bytes
    0
    """
    op = graph.ops[-1]
    if op.phase is not Phase.OPTIMIZER:
        return None
    state = sum(v.size_bytes for v in graph.values if v.kind is Kind.OPTIMIZER)
    return OptimizerStep(op.target, state, op.workspace_bytes, op.moved_bytes)


def _prices(
    joint: Joint, device: devices.Device, *, here: bool, timed: bool
) -> dict[fx.Node, Price]:
    """Price every kernel: FLOPs and bytes by formula, workspace and (if asked) time by running it.

    Ops that cannot run here, because the device is another or memory is short, get the formula;
    it speaks of a CPU's kernels, so planning for an accelerator elsewhere counts no workspace.
    """
    kernels = [n for n in joint.graph.nodes if n.op == "call_function"]
    calls = {n: _call(n) for n in kernels if _runs(n)}
    costs = {n: op_cost(c.target, c.args, c.kwargs, n.meta.get("val")) for n, c in calls.items()}
    roofline = {n: roofline_seconds(cost, device) for n, cost in costs.items()}
    known = list(calls.values())
    if here:
        memory = measure_memory(known, cache=default_cache(), fallback=estimate_workspace)
    else:
        on_cpu = device.name == devices.cpu().name
        memory = [Memory(estimate_workspace(c) if on_cpu else 0) for c in known]
    seconds = list(roofline.values())
    if here and timed:
        formula = dict(zip(map(id, known), seconds, strict=True))
        seconds = measure_seconds(known, cache=default_cache(), fallback=lambda c: formula[id(c)])
    memory = [_matched(m, c, n) for m, (n, c) in zip(memory, calls.items(), strict=True)]
    prices = {
        n: Price(s, costs[n].flops, costs[n].moved_bytes, m.workspace_bytes, m.output_bytes)
        for n, s, m in zip(calls, seconds, memory, strict=True)
    }
    return prices | {n: _copy_price(n, device) for n in kernels if n not in calls}


def _matched(memory: Memory, call: OperatorCall, node: fx.Node) -> Memory:
    """Count as workspace what a kernel returns in more, or other, storages than its fake does."""
    made = new_storage_bytes(call, node.meta.get("val"))
    if len(memory.output_bytes) in (0, len(made)):
        return memory
    return Memory(memory.workspace_bytes + max(0, sum(memory.output_bytes) - sum(made)))


def _runs(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload)


def _call(node: fx.Node) -> OperatorCall:
    value = lambda n: n.meta.get("val")  # noqa: E731
    args = fx.node.map_arg(node.args, value)
    assert isinstance(node.target, OpOverload)
    return OperatorCall(node.target, tuple(args), dict(fx.node.map_arg(node.kwargs, value)))


def _copy_price(node: fx.Node, device: devices.Device) -> Price:
    """Price what is not an operator: a copy into a layout moves its bytes twice, getitem none."""
    moved = 0
    if node.target is with_layout_of:
        moved = 2 * sum(t.untyped_storage().nbytes() for t in tensors_in(node.meta["val"]))
    return Price(moved / device.bytes_per_second(), 0, moved, 0)
