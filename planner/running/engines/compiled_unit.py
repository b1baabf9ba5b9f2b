"""A unit of a sharded step as Inductor runs it: its kernels, and what crosses its border.

Knows a unit and its call alone. What is around it, torch runs as it does without a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import CaptureError
from planner.graphs import Graph, Kind, Op, Schedule, Value, plain_schedule, simulate
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.fused.around_kernels import Frame
from planner.graphs.capture.fused.compiled_step import (
    Ends,
    compiled_step,
    ends_of,
    ends_of_code,
    really_run,
)
from planner.graphs.capture.fused.frame import frame_of
from planner.graphs.capture.fused.identity import identity
from planner.graphs.capture.fused.prices import prices, workspaces
from planner.graphs.capture.guards.call import signature_of
from planner.graphs.capture.step_function import swapped, unique_tensors
from planner.graphs.capture.training_step import Captured
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.torch_api.fake_tensors import FakeTensor
from planner.graphs.torch_api.inductor.compiler import joint_step_with_inputs
from planner.graphs.torch_api.inductor.partitioner import JointStep
from planner.graphs.torch_api.inductor.scheduler import kernels_of
from planner.request import Request
from planner.running.compiled_model import step_of
from planner.running.engines.compiled_capture import plannable
from planner.running.engines.engine import CapturedUnit

TANGENT = "tangent"
"""What an op is called that takes a gradient which arrives at a unit."""


def captured_unit(unit: nn.Module, call: Arguments, request: Request) -> CapturedUnit:
    """Capture a unit's step as Inductor will run it; only shapes of its tensors matter.

    Args:
        unit: a module, in the precision that it computes in.
        call: of it; its tensors may be fake.
        request: for which device, by which costs.

    Raises:
        CaptureError: Dynamo cannot take the unit whole, or it has nothing to train.
    """
    request.tell(f"asking Inductor for the kernels of a {type(unit).__name__}")
    with _with_data(unit):
        tensors = tuple(map(_real, call.tensors))
        try:
            step, given = _traced(unit, call, tensors)
            frame, values = _framed(step, unit, tensors, given, request)
            price = prices(request.hardware, here=True, costs=request.costs)
            compiled = compiled_step(step, frame, price, workspaces(request.hardware, here=True))
            names = {n: values.index(t) for n, t in _members(unit).items()}
            places = tuple(map(values.index, tensors))
        except GraphsCaptureError as error:
            raise CaptureError(
                f"{type(unit).__name__}, a unit of the step: {error}; engine='op_by_op' may take it"
            ) from error
    signature = signature_of(unit, call)
    signature |= {
        "accumulate": False,
        "dynamic": [],
        "checks": request.checks,
        "checked": [],
        "compiled": identity(compiled.stitched),
    }
    parted = replace(compiled, graph=_one_by_one(compiled.graph))
    captured = Captured(parted.graph, signature, compiled=parted)
    return _crossing(captured, frame, ends_of(parted), names, places)


def held_unit(unit: CapturedUnit, schedule: Schedule) -> CapturedUnit:
    """Return a unit as the code that Inductor writes for a schedule of it runs: line by line.

    Its signature says what the unit holds by itself then.

    Args:
        unit: as captured.
        schedule: of its graph.
    """
    step = unit.captured.compiled
    assert step is not None, "a compiler's unit"
    kernels = kernels_of(step.stitched.step, step.halves(schedule))
    graph, signature = _one_by_one(really_run(step, *kernels)), unit.captured.signature
    held_bytes = simulate(graph, plain_schedule(graph)).peak_bytes
    compiled = {**signature["compiled"], "held_bytes": held_bytes}
    captured = Captured(graph, {**signature, "compiled": compiled})
    names = {name: value for name, (value, _) in unit.parameters.items()}
    places = tuple(value for value, _ in unit.inputs)
    return _crossing(captured, step.frame, ends_of_code(step, *kernels), names, places)


def _traced(
    unit: nn.Module, call: Arguments, tensors: Sequence[Tensor]
) -> tuple[JointStep, tuple[Any, ...]]:
    args, kwargs, _ = call.rebuild(tensors)
    found = joint_step_with_inputs(step_of(type(unit), None), unit, args, kwargs, [])
    if found is None:
        raise GraphsCaptureError("nothing that it returns requires grad")
    plannable(found[0])
    return found


def _framed(
    step: JointStep,
    unit: nn.Module,
    tensors: Sequence[Tensor],
    given: Sequence[Any],
    request: Request,
) -> tuple[Frame, _Values]:
    """Return what is there beside the kernels, what the unit never reads included.

    Which tensor each value of it is comes with it.
    """
    frame = frame_of(step, unit, request.hardware, optimizer=None)
    if len(given) != len(frame.resident):
        raise GraphsCaptureError("its compiled step takes other tensors than its code reads")
    resident = dict(frame.resident)
    buffers = {id(b): name for name, b in unique_tensors(unit)[1].items()}
    for (key, value), tensor in zip(frame.resident.items(), given, strict=True):
        resident[key] = replace(value, name=buffers.get(id(tensor), value.name))
    read = {id(t) for t in given}
    kinds = dict.fromkeys(map(id, tensors), Kind.INPUT)
    unread = [t for t in (*_members(unit).values(), *tensors) if id(t) not in read]
    for place, t in enumerate(unread):
        kind = kinds.get(id(t), Kind.PARAMETER)
        resident[f"unread_{place}"] = Value(f"unread_{place}", t.untyped_storage().nbytes(), kind)
    values = _Values(tuple(map(id, (*given, *unread))))
    # what is around a unit sends all gradients, and holds what the unit does not
    return replace(frame, resident=resident, others=(), zeros=frozenset()), values


@dataclass(frozen=True)
class _Values:
    """Which tensor each value is that is there throughout, in order."""

    tensors: tuple[int, ...]

    def index(self, tensor: Tensor) -> int:
        return self.tensors.index(id(tensor))


def _crossing(
    captured: Captured,
    frame: Frame,
    ends: Ends,
    parameters: Mapping[str, int],
    inputs: Sequence[int],
) -> CapturedUnit:
    """Find what crosses the border; values that are there throughout come first in a graph."""
    index = {value.name: i for i, value in enumerate(captured.graph.values)}
    index |= {name: i for i, name in enumerate(frame.resident)}
    made = [None if name is None else index[name] for name in ends.gradients]
    gradients = dict(enumerate(made))
    return CapturedUnit(
        captured,
        {name: (value, gradients.get(value)) for name, value in parameters.items()},
        tuple((value, gradients.get(value)) for value in inputs),
        tuple(index[name] for name in ends.outputs if name is not None),
        tuple(index[name] for name in frame.tangents),
    )


def _one_by_one(graph: Graph) -> Graph:
    """Return a graph in which each gradient that arrives is an op of its own."""
    ops: list[Op] = []
    for op in graph.ops:
        if op.target != "tangents":
            ops.append(op)
            continue
        names = {v: graph.values[v].name for v in op.outputs}
        ops += [replace(op, name=n, target=TANGENT, outputs=(v,)) for v, n in names.items()]
    return replace(graph, ops=tuple(ops))


def _members(unit: nn.Module) -> dict[str, Tensor]:
    return dict(unique_tensors(unit)[0])


@contextmanager
def _with_data(unit: nn.Module) -> Iterator[None]:
    """Put memory where a unit's tensors have only shapes, as those cast to another precision."""
    parameters, buffers = unique_tensors(unit)
    with swapped(unit, {name: _real(t) for name, t in (parameters | buffers).items()}):
        yield


def _real(tensor: Tensor) -> Tensor:
    """Return a tensor of the same kind that has memory: itself, if it has."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.zeros(size if tensor.numel() else 0, dtype=tensor.dtype, device=tensor.device)
    made = memory.as_strided(tensor.shape, tensor.stride())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.detach().requires_grad_(tensor.requires_grad)
