"""Kernels between what a step always holds and what follows it: the ``Graph`` of a compiled step.

Knows what lives beside the kernels: parameters, inputs, gradients that arrive and leave, the
optimizer. Whose kernels they are, a plan's or those that really run, is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.graphs.capture.fused.other_calls import (
    ALONE,
    ARRIVING,
    GRADIENTS,
    OTHERS,
    WAITING,
    Calls,
)
from planner.graphs.capture.optimizer_step import OptimizerStep
from planner.graphs.capture_error import CaptureError
from planner.graphs.graph import Graph, Kind, Op, Phase, Value


@dataclass(frozen=True)
class KernelCall:
    """A kernel: the names of what it reads, and of what it makes with their bytes."""

    name: str
    target: str
    reads: tuple[str, ...]
    makes: Mapping[str, int]
    seconds: float = 0.0
    flops: int = 0
    moved_bytes: int = 0
    workspace_bytes: int = 0
    recomputable: bool = True
    module: str = ""
    source: str = ""


@dataclass(frozen=True)
class Frame:
    """What a compiled step holds beside its kernels, whatever these are.

    Attributes:
        resident: values that are there throughout, by the name of the placeholder.
        tangents: gradients that arrive when the backward pass begins, with their bytes.
        zeros: those of them that autograd makes itself, since nobody has one; given up where they
            are read last.
        others: values that no kernel reads: parameters outside, optimizer state, reserve.
        optimizer: what follows backward, if it is counted.
        optimizer_seconds: how long that takes.
        accumulate: whether gradients are added to those of earlier micro-steps, which are resident.
        granularity_bytes: to which sizes are rounded up.
        calls: how many of the step wait for their backward pass at once.
    """

    resident: Mapping[str, Value]
    tangents: Mapping[str, int]
    zeros: frozenset[str] = frozenset()
    others: tuple[Value, ...] = ()
    optimizer: OptimizerStep | None = None
    optimizer_seconds: float = 0.0
    accumulate: bool = False
    granularity_bytes: int = 1
    name: str = ""
    calls: Calls = ALONE


@dataclass
class _Assembly:
    frame: Frame
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)

    def own(self, name: str, size_bytes: int, kind: Kind) -> int:
        step = self.frame.granularity_bytes
        self.index[name] = len(self.values)
        self.values.append(Value(name, -(-size_bytes // step) * step, kind))
        return self.index[name]

    def call(self, kernel: KernelCall, phase: Phase, kinds: Mapping[str, Kind]) -> None:
        if unknown := [name for name in kernel.reads if name not in self.index]:
            raise CaptureError(
                f"Inductor's kernels cannot be put in an order: {kernel.name!r} reads "
                f"{unknown[0]!r}, which none before it makes; use engine='op_by_op'"
            )
        reads = tuple(dict.fromkeys(self.index[name] for name in kernel.reads))
        fallback = Kind.ACTIVATION if phase is Phase.FORWARD else Kind.GRADIENT
        made = [self.own(n, size, kinds.get(n, fallback)) for n, size in kernel.makes.items()]
        op = Op(
            kernel.name,
            kernel.target,
            reads,
            tuple(made),
            kernel.seconds,
            kernel.flops,
            kernel.moved_bytes,
            kernel.workspace_bytes,
            phase,
            kernel.recomputable,
            kernel.module,
            kernel.source,
        )
        self.ops.append(op)

    def mark(self, name: str, reads: Iterable[str], makes: Mapping[str, int]) -> None:
        kernel = KernelCall(name, name, tuple(reads), makes, recomputable=False)
        self.call(kernel, Phase.BACKWARD, {})


def assemble(
    frame: Frame,
    forward: Sequence[KernelCall],
    backward: Sequence[KernelCall],
    outputs: Sequence[str],
    gradients: Sequence[str],
) -> Graph:
    """Build the graph of a compiled step.

    Args:
        frame: what it holds beside its kernels.
        forward, backward: the kernels of both halves, in order.
        outputs: the names of what forward returns to the caller.
        gradients: of what backward returns.
    """
    made = _Assembly(frame)
    for name, value in frame.resident.items():
        made.index[name] = len(made.values)
        made.values.append(value)
    kinds = dict.fromkeys(outputs, Kind.OUTPUT)
    others = _others(frame)
    if others:
        kernel = KernelCall(OTHERS, OTHERS, (), others, recomputable=False)
        made.call(kernel, Phase.FORWARD, {GRADIENTS: Kind.GRADIENT})
    for kernel in forward:
        made.call(kernel, Phase.FORWARD, kinds)
    if frame.tangents:
        made.mark(ARRIVING, (), frame.tangents)
    for kernel in backward:
        made.call(kernel, Phase.BACKWARD, {})
    # what arrives is held by autograd until backward, one node to it, has returned
    arrived = [name for name in frame.tangents if name not in frame.zeros]
    waiting = [name for name in others if name == WAITING]
    handed = list(dict.fromkeys((*gradients, *arrived, *waiting)))
    made.mark("accumulate_grad", handed, {})
    late = [*gradients, *(name for name in others if name == GRADIENTS)]
    held = {*outputs, *(() if frame.accumulate else late)}
    _finish(made, gradients, late)
    kept = {made.index[name] for name in held} - {made.index[n] for n in frame.resident}
    return Graph(tuple(made.ops), tuple(made.values), frozenset(kept), frame.name)


def _others(frame: Frame) -> dict[str, int]:
    """Return what the other calls of a step hold, and when, with its bytes: what waits for their
    backward passes is known when there is a schedule.
    """
    if frame.calls.count == 1:
        return {}
    trained = (v.size_bytes for v in frame.resident.values() if v.kind is Kind.PARAMETER)
    gradients = frame.calls.others * sum(trained)
    return {WAITING: 0} if frame.accumulate else {WAITING: 0, GRADIENTS: gradients}


def _finish(made: _Assembly, gradients: Sequence[str], late: Sequence[str]) -> None:
    """Add the optimizer, which reads what is there ``late``, and what no kernel reads."""
    frame = made.frame
    if frame.accumulate:
        for name in gradients:
            size = made.values[made.index[name]].size_bytes
            made.values.append(Value(f"accumulated.{name}", size, Kind.GRADIENT))
    made.values.extend(frame.others)
    if (optimizer := frame.optimizer) is None:
        return
    reads = () if frame.accumulate else tuple(dict.fromkeys(made.index[n] for n in late))
    made.ops.append(
        Op(
            "optimizer.step",
            optimizer.name,
            reads,
            (),
            frame.optimizer_seconds,
            moved_bytes=optimizer.moved_bytes,
            workspace_bytes=optimizer.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
    )
