"""Logits that are computed and then dropped: ``logits[:, :-1]``, as older models shift them.

The head is given only the hidden states whose logits are kept: the same products, fewer rows. What
arrives for those is put back among zeros, as before. Knows one pattern: one slice along the tokens,
views, casts and pointwise operators between it and the head, and the same way back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.chunks.editing import call, renew_views, sweep, views_in, with_results
from planner.graphs.capture.chunks.region import Leaves, elements, leaving
from planner.graphs.capture.chunks.token_dims import SIZED, Dims, TokenDims, dimension, shape
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.passes.eager_semantics import first_backward
from planner.graphs.capture.rewrites import Declined

aten = torch.ops.aten


def without_dropped_tokens(joint: Joint, products: Iterable[fx.Node]) -> Joint:
    """Return the step whose head computes no logits that are dropped at once.

    Args:
        joint: the step, which is changed if there are such.
        products: what may make logits, the likeliest first.
    """
    forward = set(list(joint.graph.nodes)[: first_backward(joint)])
    for product in products:
        try:
            found = _find(joint, product)
        except Declined:
            continue
        if found is not None and not forward & found.exits.keys():  # all logits count there
            return _Narrower(joint, found).write()
    return joint


@dataclass(frozen=True)
class _Dropping:
    """A head, what is as large as all of its logits, and the slice that keeps some of them."""

    hidden: fx.Node
    nodes: tuple[fx.Node, ...]
    exits: dict[fx.Node, Leaves]
    dims: dict[fx.Node, Dims]
    kept: fx.Node
    back: tuple[fx.Node, ...]

    @property
    def source(self) -> fx.Node:
        """What is sliced."""
        (found,) = self.kept.all_input_nodes
        return found

    @property
    def sizes(self) -> list[int]:
        """The sizes of the dimensions that tokens lie along in what is sliced."""
        return [shape(self.source)[d] for d in self.dims[self.source]]

    @property
    def left(self) -> list[int]:
        """The same sizes of what is kept."""
        return [shape(self.kept)[d] for d in self.dims[self.source]]

    def narrowed(self, sizes: Iterable[int], dims: Dims) -> list[int]:
        """Return the shape of something with the tokens kept alone."""
        found = list(sizes)
        if len(dims) == len(self.left):
            for d, size in zip(dims, self.left, strict=True):
                found[d] = size
        elif len(dims) == 1:
            found[dims[0]] = math.prod(self.left)
        else:
            raise Declined("the tokens lie along other dimensions than where some are dropped")
        return found


def _find(joint: Joint, product: fx.Node) -> _Dropping | None:
    hidden: Any = product.args[-2]
    size, dims = elements(product), TokenDims(shape(product)[0])
    dims.carry(hidden, (0,))
    dims.enter(product)
    kept, back = list[fx.Node](), list[fx.Node]()
    for node in joint.graph.nodes:
        if node is product or node.op != "call_function":
            continue
        if node.target is aten.slice_backward.default and elements(node) == size and kept:
            if list(shape(node)) == list(shape(kept[0].args[0])):  # type: ignore[arg-type]
                dims.give(node, dims.of[kept[0].args[0]])  # type: ignore[index]
                back.append(node)
        elif any(map(dims.inside, node.all_input_nodes)):
            first: Any = node.args[0]
            if elements(node) == size and node.target is not aten.mm.default:
                dims.enter(node)
            elif node.target is aten.slice.Tensor and dimension(node, 1) in dims.of[first]:
                kept.append(node)
    if len(kept) != 1 or set(dims.of) - {hidden, *dims.region}:
        return None
    if any(map(dims.inside, joint.forward_outputs)) or hidden.op != "call_function":
        return None
    reads = (n for n in joint.graph.nodes if n.op == "call_function" and n is not kept[0])
    exits = {
        n: leaving(n, dims)
        for n in reads
        if not dims.inside(n) and any(map(dims.inside, n.all_input_nodes))
    }
    nodes = tuple(n for n in dims.region if n not in back)
    return _Dropping(hidden, nodes, exits, dict(dims.of), kept[0], tuple(back))


@dataclass
class _Narrower:
    """The graph of a step while its head is given fewer tokens."""

    joint: Joint
    found: _Dropping
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)
    became: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def write(self) -> Joint:
        """Return the step."""
        graph, found = self.joint.graph, self.found
        views, before = views_in(graph), list(graph.nodes)
        used = {n for n in before if n.users}
        with graph.inserting_before(found.nodes[0]):
            self.env[found.hidden] = self._some_hidden()
        for node in found.back:
            arrived: Any = node.args[0]
            self.env[node] = arrived
        for node in before:
            if node in found.nodes or node in found.exits:
                with graph.inserting_before(node):
                    self._write(node)
            elif node is found.kept:
                self._let_read(node, self.env[found.source])
        renew_views(graph, self.became.values(), views)
        sweep(graph, used, before)
        graph.lint()
        return with_results(self.joint, self.became)

    def _some_hidden(self) -> fx.Node:
        """Write the hidden states that are kept, one row each."""
        graph, found = self.joint.graph, self.found
        hidden, width = found.hidden, shape(found.hidden)[-1]
        axis = found.dims[found.source].index(dimension(found.kept, 1))
        spread = call(graph, aten.view.default, (hidden, [*found.sizes, width]), like=hidden)
        some = call(graph, aten.slice.Tensor, (spread, axis, *found.kept.args[2:]), like=found.kept)
        rows = [math.prod(found.left), width]
        return call(graph, aten.reshape.default, (some, rows), like=found.kept)

    def _write(self, node: fx.Node) -> None:
        found, graph = self.found, self.joint.graph
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.env.get(n, n))
        if node.target in SIZED:
            args = (args[0], found.narrowed(shape(node), found.dims[node]), *args[2:])
        made = call(graph, node.target, args, kwargs, like=node)
        if node not in found.exits:
            self.env[node] = made
        elif found.exits[node] is Leaves.ROWS:
            self._let_read(node, self._all_rows(node, made))
        else:
            self._let_read(node, made)

    def _all_rows(self, node: fx.Node, some: fx.Node) -> fx.Node:
        """Write rows for all tokens: those of dropped ones are 0."""
        graph, found, width = self.joint.graph, self.found, shape(node)[-1]
        axis = found.dims[found.source].index(dimension(found.kept, 1))
        sliced: Any = found.back[0].args
        spread = call(graph, aten.view.default, (some, [*found.left, width]), like=node)
        args = (spread, [*found.sizes, width], axis, *sliced[3:])
        whole = call(graph, aten.slice_backward.default, args, like=node)
        return call(graph, aten.view.default, (whole, list(shape(node))), like=node)

    def _let_read(self, node: fx.Node, made: fx.Node) -> None:
        for user in list(node.users):
            if user.target is aten.clone.default and node is self.found.kept:
                user.replace_all_uses_with(made)  # it was to lie dense, and does now
        node.replace_all_uses_with(made)
        self.became[node] = made
