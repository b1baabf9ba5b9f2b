"""Sums in which a weight's gradient is added to another: into it, where it lies.

A tied embedding's gradient is added row by row, so that there is one tensor of that size. Knows
what the chunks became, not how they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.chunks.editing import call
from planner.graphs.capture.chunks.token_dims import value
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import is_view

aten = torch.ops.aten


@dataclass
class AddedInPlace:
    """The sums of a step in chunks; ``became`` and ``exact`` as ``Writer`` has them."""

    joint: Joint
    became: dict[fx.Node, fx.Node]
    exact: dict[fx.Node, fx.Node]

    def joint_of_sums(self) -> Joint:
        """Return the step whose gradients are added up where the chunks' are."""
        gradients = tuple(n and self._without_casts(n) for n in self.joint.gradients)
        gradients = tuple(n and self._in_place(n) for n in gradients)
        return replace(self.joint, gradients=gradients)

    def _path(self, node: Any) -> tuple[fx.Node, list[fx.Node]] | None:
        """Return the product that a node is a view of, and the views from it, read by one each."""
        views: list[fx.Node] = []
        made = set(self.became.values())
        while isinstance(node, fx.Node) and len(node.users) <= 1:
            if node in made:
                return node, views[::-1]
            if node.op != "call_function" or not is_view(node):
                return None
            views.append(node)
            node = node.args[0]
        return None

    def _without_casts(self, gradient: fx.Node) -> fx.Node:
        """Take the sum for a gradient that is a copy of it, rounded, in the sum's own dtype."""
        if gradient.target is not aten._to_copy.default or not (
            path := self._path(gradient.args[0])
        ):
            return gradient
        rounded, views = path
        exact = self.exact.get(rounded)
        if exact is None or value(exact).dtype != value(gradient).dtype:
            return gradient
        with self.joint.graph.inserting_before(gradient):
            made = self._seen(exact, views)
        if value(made).stride() != value(gradient).stride():
            return gradient
        gradient.replace_all_uses_with(made)
        self.became[gradient] = made
        return made

    def _seen(self, node: fx.Node, views: Sequence[fx.Node]) -> fx.Node:
        """Write views anew, of another node."""
        graph = self.joint.graph
        for view in views:
            node = call(graph, view.target, (node, *view.args[1:]), view.kwargs, like=view)
        return node

    def _in_place(self, gradient: fx.Node) -> fx.Node:
        if gradient.target is not aten.add.Tensor or gradient.kwargs:
            return gradient
        graph = self.joint.graph
        for one, other in (gradient.args, gradient.args[::-1]):
            path = self._path(one)
            if path is None or not isinstance(other, fx.Node):
                continue
            total, views = path
            mine, wanted = value(views[-1] if views else total), value(gradient)
            if (mine.shape, mine.stride()) != (wanted.shape, wanted.stride()):
                continue
            with graph.inserting_before(gradient):
                base = self._seen(self.exact.get(total, total), views)
                made = self._added(base, other, gradient)
                if value(made).dtype != value(gradient).dtype:
                    kwargs = {"dtype": value(gradient).dtype}
                    made = call(graph, aten._to_copy.default, (made,), kwargs, like=gradient)
            gradient.replace_all_uses_with(made)
            return made
        return gradient

    def _added(self, base: fx.Node, other: fx.Node, gradient: fx.Node) -> fx.Node:
        """Write an addition; an embedding's gradient row by row, never as a whole."""
        graph = self.joint.graph
        rows = other.target is aten.embedding_dense_backward.default and len(other.users) == 1
        if not rows or other.args[4]:
            return call(graph, aten.add_.Tensor, (base, other), like=gradient)
        arrived, tokens, _, padding, _ = other.args
        width = value(base).shape[1]
        flat = call(graph, aten.reshape.default, (arrived, [-1, width]), like=other)
        tokens = call(graph, aten.reshape.default, (tokens, [-1]), like=other)
        if isinstance(padding, int) and padding >= 0:
            hidden = call(graph, aten.eq.Scalar, (tokens, padding), like=other)
            hidden = call(graph, aten.unsqueeze.default, (hidden, -1), like=other)
            flat = call(graph, aten.masked_fill.Scalar, (flat, hidden, 0), like=other)
        if value(flat).dtype != value(base).dtype:
            kwargs = {"dtype": value(base).dtype}
            flat = call(graph, aten._to_copy.default, (flat,), kwargs, like=other)
        return call(graph, aten.index_add_.default, (base, 0, tokens, flat), like=gradient)
