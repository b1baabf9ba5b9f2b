"""A step traced with sizes as symbols, turned into one whose program is handed its numbers.

Whatever depends on a symbol becomes a placeholder of the joint graph; tensors become those of the
largest call, so that what follows need not know. Knows what a call must look like for the program
to be right for it, no value larger than planned. Knows nothing of schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowered import Lowering
from planner.graphs.capture_error import CaptureError
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.fake_tensors import FakeTensor, FakeTensorMode
from planner.graphs.torch_api.fx_graphs import before_all
from planner.graphs.torch_api.pytree import tree_map
from planner.graphs.torch_api.storages import storage_key
from planner.graphs.torch_api.symbolic_sizes import (
    LEAST,
    SYMBOLIC,
    Compiled,
    SymbolicSizes,
    expression,
    is_of_sizes,
    largest,
)

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""


@dataclass(frozen=True)
class AtSizes:
    """What a program is handed at some sizes: its numbers, and how each tangent lies.

    ``value`` is what any number met while tracing is at these sizes.
    """

    numbers: tuple[int, ...]
    tangents: Mapping[int, Layout]
    value: Callable[[Any], Any]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a program as functions of the sizes of its inputs.

    ``nodes`` are their placeholders, in the order in which they are handed over. ``equal`` returns
    what must be 0, then how the inputs must lie; ``held`` the bytes of every storage, at most
    ``most_bytes``; ``layouts`` shape and strides of the tangents in a row.
    """

    nodes: tuple[fx.Node, ...]
    sizes: SymbolicSizes
    assumed: Compiled
    equal: Compiled
    held: Compiled
    most_bytes: tuple[int, ...]
    numbers: Compiled
    layouts: Compiled
    tangents: Mapping[int, int]
    """How many dimensions each tangent has."""

    def at(self, inputs: Sequence[Tensor]) -> AtSizes | None:
        """Return what the program needs for inputs, or ``None`` where it would not be right."""
        symbols = self.sizes.symbols
        values = [inputs[s.place].shape[s.dimension] for s in symbols]
        if not all(LEAST <= v <= s.most for v, s in zip(values, symbols, strict=True)):
            return None
        if not all(self.assumed(values)):
            return None
        found, lie = self.equal(values), [n for x in inputs for n in (*x.shape, *x.stride())]
        zeros = [0] * (len(found) - len(lie))
        held = zip(self.held(values), self.most_bytes, strict=True)
        if list(found) != [*zeros, *lie] or any(size > most for size, most in held):
            return None
        rest = iter(self.layouts(values))
        tangents = {
            i: (tuple(islice(rest, n)), tuple(islice(rest, n))) for i, n in self.tangents.items()
        }
        known = cache(lambda e: self.sizes.compiled([e])(values)[0])
        return AtSizes(self.numbers(values), tangents, lambda n: _number(n, known))


def _number(value: Any, known: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Size):
        return torch.Size([_number(n, known) for n in value])
    return known(expression(value)) if isinstance(value, SYMBOLIC) else value


@dataclass
class _Writer:
    """The placeholders of a graph, made as they are asked for."""

    graph: fx.Graph
    made: dict[Any, fx.Node] = field(default_factory=dict)

    def number(self, value: Any) -> Any:
        found = expression(value)
        if isinstance(found, int | float | bool):
            return found
        if found not in self.made:
            spot = next(reversed(self.made.values())) if self.made else before_all(self.graph)
            with self.graph.inserting_after(spot):
                self.made[found] = self.graph.placeholder(f"number_{len(self.made)}")
            self.made[found].meta["val"] = largest(value)
        return self.made[found]

    def argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.number(value.meta["val"]) if _is_number(value) else value
        return self.number(value) if isinstance(value, SYMBOLIC) else value


def _is_number(node: fx.Node) -> bool:
    """Tell a node that computes a number from sizes; one that is an input stays a node."""
    value = node.meta.get("val")
    plain = isinstance(value, (*SYMBOLIC, int, float, bool))
    return node.op == "call_function" and plain and is_of_sizes(value)


@dataclass(frozen=True)
class Symbolic:
    """A joint graph as of the largest call, and what its tensors were before."""

    joint: Joint
    sizes: SymbolicSizes
    were: Mapping[fx.Node, Any]
    writer: _Writer

    def numbers(self, lowering: Lowering) -> Numbers:
        """Return the numbers of the step, its ops lowered: what is overwritten must stay as large.

        Args:
            lowering: of the joint graph.
        """
        compiled = self.sizes.compiled
        storages = [x.untyped_storage().nbytes() for v in self.were.values() for x in tensors_in(v)]
        held = {expression(size): largest(size) for size in storages}
        tangents = {i: self.were[node] for i, node in self.joint.tangents.items()}
        inputs = [n for node in self.joint.inputs for n in _layout(self.were[node])]
        return Numbers(
            nodes=tuple(self.writer.made.values()),
            sizes=self.sizes,
            assumed=compiled(self.sizes.assumed),
            equal=compiled([*self._overwritten(lowering), *inputs]),
            held=compiled(list(held)),
            most_bytes=tuple(held.values()),
            numbers=compiled(list(self.writer.made)),
            layouts=compiled([n for x in tangents.values() for n in _layout(x)]),
            tangents={i: x.dim() for i, x in tangents.items()},
        )

    def _overwritten(self, lowering: Lowering) -> list[Any]:
        """Return what must be 0 for every result to be as large as what it takes the place of."""
        pairs = [
            pair
            for lowered in lowering.ops
            for follower, overwrite in lowered.then
            for pair in zip(
                _layout(self.were[follower]), _layout(self.were[overwrite.operand]), strict=True
            )
        ]
        return [a - b for a, b in dict.fromkeys(pairs) if a != b]


def _layout(tensor: Tensor) -> list[Any]:
    return [expression(n) for n in (*tensor.shape, *tensor.stride())]


def without_symbols(joint: Joint, sizes: SymbolicSizes) -> Symbolic:
    """Turn a joint graph with symbols into that of the largest call (rewritten in place).

    Args:
        joint: as traced and normalized.
        sizes: its symbols.

    Raises:
        CaptureError: a size enters the step as something else than a whole number.
    """
    writer = _Writer(joint.graph)
    were = {node: node.meta["val"] for node in joint.graph.nodes if "val" in node.meta}
    nodes = list(joint.graph.nodes)
    try:
        for node in nodes:
            if not _is_number(node):
                node.args = fx.node.map_aggregate(node.args, writer.argument)
                node.kwargs = fx.node.map_aggregate(node.kwargs, writer.argument)
    except NotImplementedError as error:
        raise CaptureError(str(error)) from error
    for node in reversed(nodes):
        if _is_number(node) and not node.users:
            joint.graph.erase_node(node)
    concrete = _Concrete()
    kept = {node: value for node, value in were.items() if not _is_number(node)}
    for node, value in kept.items():
        node.meta["val"] = tree_map(concrete, value)
    return Symbolic(joint, sizes, kept, writer)


class _Concrete:
    """The tensors of the largest call; those that shared a storage share one again."""

    def __init__(self) -> None:
        self._mode, self._whole = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Tensor]()

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return largest(value)
        key, count = storage_key(value), largest(value.untyped_storage().nbytes())
        shape, stride = ([*map(largest, n)] for n in (value.shape, value.stride()))
        with self._mode:
            if key not in self._whole:
                self._whole[key] = torch.empty(count, dtype=torch.uint8, device=value.device)
            flat = self._whole[key].view(value.dtype)
            return flat.as_strided(shape, stride, largest(value.storage_offset()))
