"""How long torch's own autograd holds what a backward pass makes: node by node of its graph.

A node's backward function, written in C++, holds its incoming gradient, the tensors it saved and
every temporary until it returns (``tools/autograd/derivatives.yaml`` and ``FunctionsManual.cpp`` of
PyTorch), while a step of a plan lets each go after its last reader. Gradients that meet are added
into the older one (``InputBuffer::accumulate``) unless it is a view, which holds what it is of;
what a formula scatters into fresh zeros it scatters in place. What a call of the user's writes is
written in place; through a view, its gradient is, too (``CopySlices``), where tracing makes a copy
of what the view is of. Knows torch.fx nodes only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.joint_graph import in_place
from planner.graphs.capture.node_kinds import storages
from planner.graphs.capture.passes.inplace import Readers
from planner.graphs.torch_api.operators import OpOverload, views_its_operand

aten = torch.ops.aten

_FRESH = frozenset({"new_zeros", "zeros", "zeros_like", "full", "new_full", "full_like"})
_SCATTERS = frozenset(
    {"scatter", "scatter_add", "index_put", "_unsafe_index_put", "index_add", "index_copy",
     "masked_scatter", "put", "slice_scatter", "select_scatter", "diagonal_scatter"}
)  # fmt: skip
_INTO_VIEWS = frozenset(
    {"as_strided_scatter", "diagonal_scatter", "select_scatter", "slice_scatter"}
)
"""Operators as which tracing records a write through a view (``FunctionalInverses.cpp``)."""
_CHANGES = frozenset(
    {("empty_like", "fill"), ("fill", "sub"), ("where", "masked_fill"), ("div", "masked_fill"),
     ("ge", "logical_and"), ("lt", "logical_and"), ("ge", "logical_or"), ("le", "logical_or"),
     ("logical_or", "logical_not")}
)  # fmt: skip
"""Pairs of which a formula does the second in place: of ``1 - x``, maximum, norm, clamp, fmax."""
_UNREAD: Mapping[str, int] = {
    "gather": 0, "cummax": 0, "cummin": 0, "take": 0, "index_add": 3, "index_copy": 3,
}  # fmt: skip
"""Operators that save an operand of which their formula reads the shape alone, and its place."""
_FORKED: Mapping[Any, Callable[[int, int], int]] = {
    aten.prod.default: lambda count, size: size,
    aten.prod.dim_int: lambda count, size: size + count,
    aten.cumprod.default: lambda count, size: 3 * size + count,
}
"""Operators whose backward function asks whether there are zeros, which a traced one may not ask.

What torch holds beside the result where there are none, from the elements and bytes of the operand:
a quotient, a mask of a byte an element, and what reverses a cumulative sum.
"""


class AutogradNodes:
    """Which node of autograd's graph a kernel of the backward pass belongs to."""

    def __init__(self, graph: fx.Graph) -> None:
        self._readers = Readers(graph)
        self._position: Mapping[fx.Node, int] = {n: i for i, n in enumerate(graph.nodes)}
        # numbers are given as nodes are made, so what has the last is none of them: the engine's
        self._last = graph.output_node().meta.get("seq_nr")

    def number(self, node: fx.Node | None) -> int | None:
        """Return the number of a kernel's autograd node; ``None`` if it runs by itself."""
        if node is None or "autograd_backward" not in node.meta:
            return None
        found: int | None = node.meta.get("seq_nr")
        return None if found == self._last else found

    def forked(self) -> dict[int, int]:
        """Return for the numbers of nodes that are traced by another formula the true workspace."""
        found = dict[int, int]()
        for node in self._position:
            if node.target in _FORKED and "autograd_backward" not in node.meta:
                (operand,) = node.all_input_nodes[:1]
                tensor = operand.meta["val"]
                size = tensor.numel() * tensor.element_size()
                found[node.meta.get("seq_nr", -1)] = _FORKED[node.target](tensor.numel(), size)
        return found

    def saved_unread(self) -> dict[int, list[fx.Node]]:
        """Return for the numbers of nodes what they save and no kernel of theirs reads."""
        found = defaultdict[int, list[fx.Node]](list)
        for node in self._position:
            number = node.meta.get("seq_nr")
            known = isinstance(node.target, OpOverload) and "autograd_backward" not in node.meta
            if known and number is not None and _name(node) in _UNREAD:
                operand = node.args[_UNREAD[_name(node)]]
                found[number] += [operand] if isinstance(operand, fx.Node) else []
        return found

    def written(self, node: fx.Node) -> fx.Node | None:
        """Return the operand in whose storage eager mode puts a kernel's result, if it does."""
        operand, made = (node.args or (None,))[0], node.meta.get("val")
        if not isinstance(node.target, OpOverload) or not isinstance(made, Tensor):
            return None
        if not isinstance(operand, fx.Node) or self._is_given(operand):
            return None
        if self._through_a_view(node, operand):
            return operand
        if "autograd_backward" not in node.meta:
            return operand if in_place(node) and self._fits(node, operand, made) else None
        sums = node.target is aten.add.Tensor and self.number(node) is None
        summed = sums and not views_its_operand(operand.target)
        filled = _name(node) in _SCATTERS and _is(operand, _FRESH)
        written = summed or filled or self._changes(node, operand)
        return operand if written and self._fits(node, operand, made) else None

    def _changes(self, node: fx.Node, operand: fx.Node) -> bool:
        """Tell whether a formula does a kernel in place of another of its own."""
        if self.number(node) is None or self.number(node) != self.number(operand):
            return False
        return isinstance(operand.target, OpOverload) and (_name(operand), _name(node)) in _CHANGES

    def _is_given(self, operand: fx.Node) -> bool:
        return any(map(self._readers.is_given, storages(operand)))

    def _through_a_view(self, node: fx.Node, operand: fx.Node) -> bool:
        """Tell whether a kernel is a write, or what came of writing through a view."""
        if _name(node) == "copy":
            return True
        if _name(node) in _INTO_VIEWS:
            (source,) = node.args[1:2]
            return isinstance(source, fx.Node) and _is_put_back(source, into=node)
        return any(_is(reader, _INTO_VIEWS) and _is_put_back(node, reader) for reader in node.users)

    def _fits(self, node: fx.Node, operand: fx.Node, made: Tensor) -> bool:
        """Tell whether the operand is made by the step, as large, and not read any more."""
        old = operand.meta.get("val")
        if operand.op != "call_function" or not isinstance(old, Tensor):
            return False
        alike = (old.shape, old.dtype) == (made.shape, made.dtype)
        whole = old.untyped_storage().nbytes() == made.untyped_storage().nbytes()
        (storage,) = storages(operand)
        here = self._position[node]
        done = all(self._position[r] <= here for r in self._readers.of(storage))
        return alike and whole and done


def _is_put_back(node: fx.Node, into: fx.Node) -> bool:
    """Tell whether a kernel's result goes into the very tensor of which its operand is a view."""
    viewed, base = (node.args or (None,))[0], into.args[0]
    if not isinstance(viewed, fx.Node) or not isinstance(base, fx.Node) or into.args[1] is not node:
        return False
    alone = set(node.users) == {into} and viewed.meta["val"].shape == node.meta["val"].shape
    return alone and storages(viewed) == storages(base)


def _is(node: fx.Node, names: Set[str]) -> bool:
    return isinstance(node.target, OpOverload) and _name(node) in names


def _name(node: fx.Node) -> str:
    """Return what torch calls an operator of its own; nothing for those of others."""
    assert isinstance(node.target, OpOverload)
    return str(node.target.overloadpacket.__name__) if node.target.namespace == "aten" else ""
