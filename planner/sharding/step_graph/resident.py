"""What a step holds from end to end: weights or shards, buffers, inputs, buckets, reserves.

What is there of parameters and gradients is the strategy's.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.graphs import Kind
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.step_rules import StepRules
from planner.sharding.wrapped.boundary import UnitCapture
from planner.solvers.model.order_from_kept import turning_point

_SCALAR_BYTES = 8


def reside(draft: Draft, rules: StepRules) -> None:
    """Add parameters or their shards, buffers, inputs, buckets and the device's reserve.

    A loss is divided by the number of micro-steps, so there are two of it.
    """
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
        rules.reside(draft, i)
        if i != ROOT:
            _unit_buffers(draft, i, capture, buffers, constants)
    if draft.configuration.accumulation > 1:
        draft.value("divided loss", 2 * _SCALAR_BYTES, Kind.ACTIVATION)
    rules.hold(draft)
    if late_inputs := max(map(_late_input_bytes, draft.captures.kinds)):
        draft.value("inputs of a unit that runs again", late_inputs, Kind.RESERVE)


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
    turn = turning_point(capture.graph)
    read = {v for op in capture.graph.ops[turn:] for v in op.inputs}
    return [v for v in capture.inputs if v in read]


def _late_input_bytes(capture: UnitCapture) -> int:
    """Return what else autograd may save: the inputs that only ops that run again would read.

    Whether one does is the schedule's to say, so this is a reserve: one unit's, as no two are in
    backward at once.
    """
    values, saved = capture.graph.values, saved_inputs(capture)
    activations = [v for v in capture.inputs if v not in saved and values[v].kind is Kind.INPUT]
    return sum(values[v].size_bytes for v in activations)
