"""What a step holds from end to end: weights or shards, buffers, inputs, buckets, reserves.

Knows what is always there under which configuration. Knows nothing of the order of ops.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.graphs import Kind, Phase
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.parameter_groups import gloo_reserve_bytes
from planner.sharding.wrapped.boundary import UnitCapture

_SCALAR_BYTES = 8


def reside(draft: Draft) -> None:
    """Add parameters or their shards, buffers, inputs, buckets and the device's reserve."""
    mapped = draft.maps[ROOT] = {}
    taken = {p.value for p in draft.root.parameters}
    buffers: dict[str, int] = {}
    for v in sorted(draft.root.graph.resident):
        value = draft.root.graph.values[v]
        if value.kind in (Kind.BUFFER, Kind.INPUT):
            mapped[v] = draft.value(value.name, value.size_bytes, value.kind)
            if value.kind is Kind.BUFFER:
                buffers[value.name] = mapped[v]
        elif value.kind is Kind.RESERVE:
            draft.value(value.name, value.size_bytes, value.kind)
        else:
            assert value.kind is Kind.PARAMETER or v in taken
    constants: dict[tuple[int, int], int] = {}
    for i, capture in draft.captures_by_index():
        _parameters(draft, i)
        if i != ROOT:
            _unit_buffers(draft, i, capture, buffers, constants)
    if draft.configuration.accumulation > 1:
        _accumulated(draft)
    if not draft.sharded:
        size = sum(group.reduced for group in draft.groups.values())
        draft.value("gradient buckets", size, Kind.GRADIENT)
    _reserves(draft)


def _reserves(draft: Draft) -> None:
    """Add what may be held, and is not expected."""
    if late_inputs := max(map(_late_input_bytes, draft.captures.kinds)):
        draft.value("inputs of a unit that runs again", late_inputs, Kind.RESERVE)
    if draft.sharded and draft.cluster.device.name == "cpu":
        units = [group for i, group in draft.groups.items() if i != ROOT]
        late = gloo_reserve_bytes(units, draft.groups[ROOT])
        draft.value("late releases of gloo", late, Kind.RESERVE)


def _accumulated(draft: Draft) -> None:
    """Add what micro-steps leave to the later ones.

    Under DDP gradients become views of the buckets in the last one: they are gone before the
    optimizer's step. A loss is divided by the number of micro-steps, so there are two of it.
    """
    draft.value("divided loss", 2 * _SCALAR_BYTES, Kind.ACTIVATION)
    groups = draft.groups.values()
    if not draft.sharded:
        size = sum(group.reduced for group in groups)
        draft.reduced.append(draft.value("accumulated gradients", size, Kind.GRADIENT))
        draft.op("micro_steps", (), draft.reduced)
    elif not draft.elsewhere:
        size = sum(group.gradient_shard for group in groups)
        draft.value("accumulated gradients", size, Kind.GRADIENT)


def _parameters(draft: Draft, i: int) -> None:
    group = draft.groups[i]
    if not draft.sharded:
        draft.weights[i] = draft.value(f"parameters.{draft.name(i)}", group.shard, Kind.PARAMETER)
    elif not draft.elsewhere:
        draft.value(f"shards.{draft.name(i)}", group.shard, Kind.PARAMETER)


def _unit_buffers(
    draft: Draft,
    i: int,
    capture: UnitCapture,
    buffers: Mapping[str, int],
    constants: dict[tuple[int, int], int],
) -> None:
    """Map a unit's resident values: its buffers are among the root's, constants are its own."""
    mapped = draft.maps[i] = {}
    known = {*(p.value for p in capture.parameters), *capture.inputs}
    for v in sorted(capture.graph.resident - known):
        value = capture.graph.values[v]
        if value.kind is Kind.RESERVE:
            continue
        path = f"{draft.name(i)}.{value.name}"
        if path in buffers:
            mapped[v] = buffers[path]
            continue
        key = (draft.captures.kind_of[i], v)
        if key not in constants:
            constants[key] = draft.value(path, value.size_bytes, value.kind)
        mapped[v] = constants[key]


def saved_inputs(capture: UnitCapture) -> list[int]:
    """Return the inputs that a unit's backward reads even if nothing runs again."""
    read = {v for op in capture.graph.ops if op.phase is Phase.BACKWARD for v in op.inputs}
    return [v for v in capture.inputs if v in read]


def _late_input_bytes(capture: UnitCapture) -> int:
    """Return what else autograd may save: the inputs that only ops that run again would read.

    Whether one does is the schedule's to say, so this is a reserve: one unit's, as no two are in
    backward at once.
    """
    values, saved = capture.graph.values, saved_inputs(capture)
    activations = [v for v in capture.inputs if v not in saved and values[v].kind is Kind.INPUT]
    return sum(values[v].size_bytes for v in activations)
