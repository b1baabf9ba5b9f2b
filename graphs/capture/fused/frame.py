"""What a compiled step holds beside its kernels, read off its joint graph and its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, fx, nn

from planner.graphs.capture.fused.around_kernels import Frame
from planner.graphs.capture.fused.other_calls import ALONE, Calls
from planner.graphs.capture.optimizer_step import OptimizerStep
from planner.graphs.graph import Kind, Value
from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.inductor.partitioner import JointStep
from planner.graphs.torch_api.inductor.symbols import AtMost
from planner.graphs.torch_api.storages import storage_key


def frame_of(
    step: JointStep,
    model: nn.Module,
    device: Device,
    *,
    optimizer: OptimizerStep | None,
    accumulate: bool = False,
    calls: Calls = ALONE,
) -> Frame:
    """Return what a step holds beside its kernels.

    Args:
        step: as Inductor hands it over.
        model: whose step it is; parameters that the step leaves out are held, too.
        device: that it runs on.
        optimizer: what follows backward, of all calls; ``None`` leaves it out.
        accumulate: whether gradients of earlier micro-steps are kept.
        calls: how many wait for backward at once, each of a block with parameters of its own.
    """
    placeholders = step.module.graph.find_nodes(op="placeholder")
    size = partial(_bytes, largest=step.largest)
    arriving = {n.name: size(n) for n in placeholders if n.name.startswith("tangents")}
    own = [n for n in placeholders if n.name not in arriving]
    (outputs,) = step.module.graph.output_node().args
    assert isinstance(outputs, tuple | list)
    trained = [x is not None for x in outputs[step.forward_outputs :]]
    resident = {
        node.name: Value(node.name, size(node), _kind(place in step.static, wanted))
        for place, (node, wanted) in enumerate(zip(own, trained, strict=True))
    }
    inside = sum(v.size_bytes for v in resident.values() if v.kind is not Kind.INPUT)
    others = [
        Value("parameters outside", _held_by(model) - inside, Kind.PARAMETER),
        Value("device reserve", device.reserve_bytes, Kind.RESERVE),
        *_of_others(resident.values(), calls, accumulate=accumulate),
    ]
    seconds = 0.0
    if optimizer is not None:
        others.append(Value(f"{optimizer.name} state", optimizer.state_bytes, Kind.OPTIMIZER))
        seconds = optimizer.moved_bytes / device.bytes_per_second()
    return Frame(
        resident,
        arriving,
        _zeros(placeholders, arriving),
        tuple(v for v in others if v.size_bytes > 0),
        optimizer,
        seconds,
        accumulate,
        device.granularity_bytes,
        type(model).__name__,
        calls,
    )


def _of_others(values: Iterable[Value], calls: Calls, *, accumulate: bool) -> Iterator[Value]:
    """Yield what is there throughout for the other calls of a step: each is of another block."""
    held = Counter[Kind]()
    for value in values:
        held[value.kind] += value.size_bytes
    for kind, name in ((Kind.PARAMETER, "parameters"), (Kind.BUFFER, "buffers")):
        yield Value(f"{name} of the other calls", calls.others * held[kind], kind)
    gradients = calls.others * held[Kind.PARAMETER] if accumulate else 0
    yield Value("accumulated gradients of the other calls", gradients, Kind.GRADIENT)


def _zeros(placeholders: Iterable[fx.Node], arriving: Collection[str]) -> frozenset[str]:
    """Return the gradients that nobody has: beside a loss, those of all other outputs."""
    found = [n for n in placeholders if n.name in arriving]
    is_loss = bool(found) and found[0].meta["val"].dim() == 0
    return frozenset(n.name for n in found[1:]) if is_loss else frozenset()


def _kind(static: bool, trained: bool) -> Kind:  # noqa: FBT001
    if not static:
        return Kind.INPUT
    return Kind.PARAMETER if trained else Kind.BUFFER


def _bytes(node: fx.Node, largest: AtMost) -> int:
    value = largest.of(node.meta.get("val"))
    if not isinstance(value, torch.Tensor):
        return 0
    return int(value.untyped_storage().nbytes())


def _held_by(model: nn.Module) -> int:
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    storages = {storage_key(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
