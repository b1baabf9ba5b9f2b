"""A captured unit, or the root, and its border: parameters, inputs, outputs, calls of units."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from planner.graphs import Graph, Op
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import is_view
from planner.graphs.capture.opaque_units import BACKWARD, FORWARD, Stub
from planner.graphs.capture.training_step import Captured, Traced
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.running.engines.engine import CapturedUnit


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a unit: where its compute copy and its gradient live in the graph.

    ``itemsize`` is that of the dtype the model stores it in, ``compute_itemsize`` that of the copy.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    compute_itemsize: int
    trainable: bool
    value: int
    gradient: int | None


@dataclass(frozen=True, slots=True)
class UnitCall:
    """Where the root calls a unit: the two opaque ops and the root's values at its border.

    ``inputs`` and ``outputs`` are in the order of the unit's; ``tangents`` has ``None`` where no
    gradient arrives at an output, ``gradients`` where none leaves through an input.
    """

    forward: int
    backward: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tangents: tuple[int | None, ...]
    gradients: tuple[int | None, ...]


@dataclass(frozen=True)
class UnitCapture:
    """A captured unit, or the root around all units, and its border as values of its graph.

    ``calls`` are the root's, one a unit in the order of execution. A ``table`` of embeddings may
    be looked up where its rows are instead of being gathered. ``engine_unit`` is what an engine
    that runs units by itself knows of it.
    """

    captured: Captured
    parameters: tuple[Parameter, ...]
    inputs: tuple[int, ...]
    input_gradients: tuple[int | None, ...]
    outputs: tuple[int, ...]
    tangents: tuple[int | None, ...]
    calls: tuple[UnitCall, ...] = ()
    table: bool = False
    engine_unit: CapturedUnit | None = None

    @property
    def graph(self) -> Graph:
        """What the unit runs."""
        return self.captured.graph

    def own_ops(self) -> Iterator[Op]:
        """Yield what it runs itself, without the opaque ops of the units that it calls."""
        stubs = {op for call in self.calls for op in (call.forward, call.backward)}
        yield from (op for i, op in enumerate(self.graph.ops) if i not in stubs)

    @property
    def signature(self) -> dict[str, Any]:
        """What its capture is valid for."""
        return self.captured.signature


def stub_of(joint: Joint) -> Stub:
    """Return what stands in for a captured unit."""
    return Stub(joint.outputs, tuple(n.meta["val"] for n in joint.forward_outputs))


def unit_capture_of(
    traced: Traced, stored: Mapping[str, int], skip: set[str] | frozenset[str] = frozenset()
) -> UnitCapture:
    """Find the border of a unit or of the root among the values of its graph.

    Args:
        traced: the capture.
        stored: bytes of an element of every parameter, as the model stores it.
        skip: names of parameters that are not its own.
    """
    joint = traced.joint
    value = functools.partial(_value, traced)
    gradients = dict(zip((*joint.parameters, *joint.inputs), joint.gradients, strict=True))
    members = traced.captured.signature["parameters"]
    trainable = {name: wanted for name, _, _, wanted, *_ in members}
    parameters = tuple(
        Parameter(
            name,
            tuple(node.meta["val"].shape),
            stored[name],
            node.meta["val"].element_size(),
            trainable[name],
            _must(value(node)),
            value(gradients[name]),
        )
        for name, node in joint.parameters.items()
        if name not in skip
    )
    return UnitCapture(
        captured=traced.captured,
        parameters=parameters,
        inputs=tuple(_must(value(n)) for n in joint.inputs),
        input_gradients=tuple(value(gradients[n]) for n in joint.inputs),
        outputs=tuple(_must(value(n)) for n in joint.forward_outputs),
        tangents=tuple(value(joint.tangents.get(i)) for i in range(len(joint.forward_outputs))),
    )


def _value(traced: Traced, node: fx.Node | None) -> int | None:
    return None if node is None else traced.lowering.value_of[node][0]


def _must(value: int | None) -> int:
    assert value is not None
    return value


def calls_of(around: Traced, paths: Sequence[str]) -> tuple[UnitCall, ...]:
    """Find the two opaque ops of every unit in the root's graph."""
    value_of = around.lowering.value_of
    position = {
        low.node: index for index, low in enumerate(around.lowering.ops) if low.node is not None
    }
    found: dict[tuple[str, str], fx.Node] = {}
    for node in around.joint.graph.nodes:
        if str(node.target) in (FORWARD, BACKWARD):
            found[str(node.target), _spec(node)["unit"]] = node
    calls = []
    for path in paths:
        if (FORWARD, path) not in found or (BACKWARD, path) not in found:
            raise GraphsCaptureError(f"nothing that the loss depends on comes from unit {path!r}")
        one, two = found[FORWARD, path], found[BACKWARD, path]
        spec = _spec(two)
        inputs = [value_of[n][0] for n in _operands(one)][:-1]  # the last one is the anchor
        outputs = _storages(one, value_of)
        given = (value_of[n][0] for n in _operands(two))
        arrived = dict(zip(spec["arrived"], given, strict=True))
        made = dict(zip(spec["wanted"], _storages(two, value_of), strict=True))
        calls.append(
            UnitCall(
                forward=position[one],
                backward=position[two],
                inputs=tuple(inputs),
                outputs=outputs,
                tangents=tuple(arrived.get(i) for i in range(len(outputs))),
                gradients=tuple(made.get(i) for i in range(len(inputs))),
            )
        )
    return tuple(calls)


def units_read_outside(around: Traced, paths: Sequence[str]) -> dict[str, str]:
    """Return the units whose parameters the root itself reads, each with the name of one.

    Args:
        around: the root's capture.
        paths: of the units.
    """
    found: dict[str, str] = {}
    for name, node in around.joint.parameters.items():
        unit = next((p for p in paths if name.startswith(f"{p}.")), None)
        if unit is not None and _is_read(node):
            found.setdefault(unit, name)
    return found


def _is_read(node: fx.Node) -> bool:
    """Tell whether anything but a unit's own ops takes a parameter, or a view of it."""
    return any(
        _is_read(user) if is_view(user) else str(user.target) not in (FORWARD, BACKWARD)
        for user in node.users
        if user.op == "call_function"
    )


def _spec(node: fx.Node) -> dict[str, Any]:
    return dict(json.loads(str(node.args[-1])))


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the first list of tensors an opaque op takes."""
    listed = cast(list[fx.Node], node.args[0])
    return list(listed)


def _storages(node: fx.Node, value_of: Mapping[fx.Node, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the value of each tensor an opaque op makes; it never makes two views of one."""
    values = value_of[node]
    assert len(values) == len(node.meta["val"])
    return values
