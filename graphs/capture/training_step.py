"""``capture``: from a model, example inputs and an optimizer to the graph of its training step.

Puts tracing, prices and the optimizer together. Knows nothing of budgets or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import fx, nn

import planner.graphs.capture.chunks.rewrite  # noqa: F401 - enters itself
from planner.graphs.capture.call_arguments import Arguments, Inputs, arguments_of
from planner.graphs.capture.exchange.recognized import Capacity, capacity_of
from planner.graphs.capture.guards.call import (
    class_name,
    device_type,
    signature_of,
)
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.kernel_prices import as_in_eager_mode, prices
from planner.graphs.capture.lowered import Lowering, Price
from planner.graphs.capture.lowering import assemble
from planner.graphs.capture.optimizer_step import OptimizerStep, asked_step
from planner.graphs.capture.passes.eager_semantics import normalized
from planner.graphs.capture.placed import require_plannable
from planner.graphs.capture.rewrites import AS_CAPTURED, rewrite_of, rewritten
from planner.graphs.capture.sizes import Dynamic, free_sizes
from planner.graphs.capture.source_line import short_line
from planner.graphs.capture.target import Target
from planner.graphs.capture.trace import trace
from planner.graphs.costs.registry import cost_model
from planner.graphs.expert_capacity import CAPACITY_FACTOR
from planner.graphs.graph import Graph, Kind, Phase
from planner.graphs.hardware import devices
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.detect import local_device
from planner.graphs.schedule import plain_schedule
from planner.graphs.simulate import simulate
from planner.graphs.torch_api.fake_tensors import FakeTensor
from planner.graphs.torch_api.module_internals import named_parameters_of
from planner.graphs.torch_api.patches import capturing

if TYPE_CHECKING:
    from planner.graphs.capture.fused.compiled_step import CompiledStep


@dataclass(frozen=True)
class Captured:
    """A training step and what it is valid for."""

    graph: Graph
    signature: dict[str, Any]
    rewrite: str = AS_CAPTURED.name
    """Which variant of the step the graph is: a name of ``graphs.capture.rewrites.REWRITES``."""
    eager: Graph | None = None
    """The step as torch runs and holds it itself, if that was asked for: for what people do there.

    It is judged, and never run: holding is written as reading.
    """
    compiled: CompiledStep | None = field(default=None, compare=False, repr=False)
    """The step as a compiler will run it, if one will."""
    variant: Callable[..., Captured] | None = field(default=None, compare=False, repr=False)
    """Returns the same step rewritten otherwise, by a rewrite's name, or raises ``Declined``.

    With ``run=False`` none of its kernels is run in order to know what it takes.
    """

    @cached_property
    def eager_peak_bytes(self) -> int | None:
        """What the step holds at most where torch runs it itself, if that was asked for."""
        eager = self.eager
        return None if eager is None else simulate(eager, plain_schedule(eager)).peak_bytes


def capture(
    model: nn.Module,
    inputs: Inputs | Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: devices.DeviceSpec = "auto",
    costs: str = "roofline",
    accumulate: bool = False,
    rewrite: str = AS_CAPTURED.name,
    dynamic: Dynamic = "batch",
    checks: str = "keep",
    progress: Callable[[str], None] | None = None,
    cluster: Cluster | None = None,
    capacity_factor: float = CAPACITY_FACTOR,
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
        rewrite: the variant of the step to capture, a name of ``REWRITES``.
        dynamic: which sizes may be smaller when the step is run, as ``free_sizes`` takes it.
        checks: "keep" those that the model's code makes in order to raise or log, or "drop" them.
        progress: called with a word about what begins.
        cluster: the devices of all ranks, if the model is parallelized over some.
        capacity_factor: how many times the even share of rows is planned for where tokens are
            sent to experts.

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
        rewrite=rewrite,
        dynamic=dynamic,
        checks=checks,
        progress=progress,
        eager_graph=True,
        cluster=cluster,
        capacity_factor=capacity_factor,
    )
    return found.captured


@dataclass(frozen=True)
class Traced:
    """A captured step with what its graph was made from."""

    captured: Captured
    joint: Joint
    lowering: Lowering
    variant: Callable[[str], Traced] | None = field(default=None, compare=False, repr=False)
    """Returns the same step rewritten otherwise, by a rewrite's name, or raises ``Declined``."""


@capturing()
def capture_joint(
    model: nn.Module,
    call: Arguments,
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    device: devices.DeviceSpec = "auto",
    costs: str = "roofline",
    accumulate: bool = False,
    eager: bool = False,
    real: bool | None = None,
    rewrite: str = AS_CAPTURED.name,
    dynamic: Dynamic = "batch",
    checks: str = "keep",
    progress: Callable[[str], None] | None = None,
    eager_graph: bool = False,
    cluster: Cluster | None = None,
    aside: Collection[str] = (),
    capacity_factor: float = CAPACITY_FACTOR,
) -> Traced:
    """Do what ``capture`` does and keep the traced nodes.

    Args:
        model, loss, optimizer, device, costs, accumulate, rewrite, dynamic, checks: as for
            ``capture``.
        progress, cluster, capacity_factor: likewise.
        call: the flattened inputs and targets.
        eager: torch will run the step itself, with its own dropout and no kernel writing into
            what the one before it made.
        real: whether kernels may be run here; by default those of a model that has data.
        eager_graph: also lower the step as torch itself runs it.
        aside: names of parameters that the step must not read, nor the optimizer step.
    """
    cost_model(costs)  # an unknown one is said before any work
    require_plannable(model)
    tell = progress or (lambda _: None)
    target, at_hand = target_of(model, call, device, eager=eager)
    where = target.device
    tell("capturing forward and backward")
    rewrite_of(rewrite)  # an unknown one is said before any work
    free, capacity = free_sizes(model, call, dynamic), Capacity(capacity_factor)
    joint = trace(
        model,
        call,
        loss=loss,
        answers=call.answers,
        lean=target.lean,
        card=target.card,
        checks=checks == "keep",
        aside=aside,
        capacity=capacity,
    )
    joint = normalized(joint)
    tell("running the optimizer on fake tensors")
    wanted = {n for n, p in named_parameters_of(model) if p.requires_grad}
    trainable = [node.meta["val"] for n, node in joint.parameters.items() if n in wanted]
    step = asked_step(trainable, optimizer, target.kernels)
    answers = joint.decisions.answers
    signature = signature_of(
        model, call, answers=answers, loss=loss is not None, kernels=target.kernels
    )
    checked = sorted({short_line(check.source) for _, check in joint.outputs.checks})
    signature |= {"accumulate": accumulate, "dynamic": free, "checks": checks, "checked": checked}
    signature |= {"in_place": True}  # new values of buffers, as far as can be
    signature |= (sends := capacity_of(joint.graph, capacity))
    # a model without data is planned for elsewhere: its kernels may be far too large to run here
    here = at_hand and (has_data(model) if real is None else real)
    step_of_model = _Step(
        joint,
        signature,
        prices=lambda joint, *, run=True: prices(
            joint,
            where,
            here=here and run,
            costs=costs if run else "roofline",
            kernels=target.kernels,
            cluster=cluster,
        ),
        assemble=partial(
            assemble,
            target=target,
            optimizer=step,
            optimizer_seconds=0.0 if step is None else step.seconds_on(where),
            accumulate=accumulate,
            name=class_name(model),
        ),
        kernels=target.kernels,
        eager=eager,
        # what autograd keeps of experts that tokens are sent to is up to the router
        eager_graph=eager_graph and not sends,
    )
    tell("pricing operators")
    return step_of_model.variant(rewrite)


@dataclass(frozen=True)
class _Step:
    """A traced step, before it is rewritten: what all its variants have in common.

    ``joint`` is the step as captured, ``prices`` and ``assemble`` what its kernels cost and how
    they become a graph.
    """

    joint: Joint
    signature: dict[str, Any]
    prices: Callable[..., dict[fx.Node, Price]]
    assemble: Callable[..., tuple[Graph, Lowering]]
    kernels: str
    eager: bool
    eager_graph: bool

    def variant(self, rewrite: str, *, run: bool = True) -> Traced:
        """Return the step rewritten.

        Args:
            rewrite: its name.
            run: whether its kernels may be run, where the device is at hand.

        Raises:
            Declined: the rewrite does not suit it.
        """
        joint, name = rewritten(self.joint, rewrite)
        priced = self.priced if joint is self.joint else self.prices(joint, run=run)
        graph, lowering = self.assemble(joint, priced.__getitem__, eager=self.eager)
        captured = Captured(graph, self.signature, name, self.run_by_torch, variant=self._captured)
        return Traced(captured, joint, lowering, self.variant)

    @cached_property
    def priced(self) -> dict[fx.Node, Price]:
        """What the kernels of the step as captured cost."""
        return self.prices(self.joint)

    @capturing()
    def _captured(self, rewrite: str, *, run: bool = True) -> Captured:
        return self.variant(rewrite, run=run).captured

    @cached_property
    def run_by_torch(self) -> Graph | None:
        """The step as torch runs and holds it itself, whatever the rewrite; if it was asked for."""
        if not self.eager_graph:
            return None
        priced = self.priced
        # no kernel there writes into what the one before made; gradients are handed over at the
        # end, or added as they are made, as in the step of a plan
        graph, _ = self.assemble(
            self.joint,
            lambda node: as_in_eager_mode(node, priced[node], self.kernels),
            eager=True,
            looped=True,
        )
        return graph


def target_of(
    model: nn.Module, call: Arguments, device: devices.DeviceSpec, *, eager: bool = False
) -> tuple[Target, bool]:
    """Return what a step is captured for, and whether that device is the one the model is on.

    Args:
        model: that is captured.
        call: what it is called with.
        device: what to plan for; "auto" is where the model lives.
        eager: as for ``capture_joint``.
    """
    kind = device_type(model, call)
    home = devices.cpu() if kind == "cpu" else local_device()
    where = home if device in ("auto", home.name) else devices.device(device)
    kernels = kind if kind != "cpu" or where.name == "cpu" else "cuda"
    target = Target(where, kernels, kind, lean=not (eager and where.name == "cpu"))
    return target, where.name == home.name


def has_data(model: nn.Module) -> bool:
    """Tell whether all parameters are more than a shape.

    >>> has_data(nn.Linear(2, 2)), has_data(nn.Linear(2, 2, device="meta"))
    (True, False)
    """
    return not any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters())


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
