"""Which gradients are multiples of the one that arrives: by operators known to be linear in it.

Form B computes with a gradient of 1 and multiplies by the one that arrives. That is right only if
every operator on the way is linear, which a hook that clamps, for instance, is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.node_kinds import is_view
from planner.graphs.capture.rewrites import Declined
from planner.graphs.torch_api.operators import OpOverload
from planner.graphs.torch_api.pytree import tree_flatten

aten = torch.ops.aten

_OF_ONE = frozenset(
    {
        aten._to_copy.default, aten.clone.default, aten.neg.default, aten.sum.default,
        aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.expand.default,
        aten.mul.Scalar, aten.div.Scalar, aten.gather.default, aten.constant_pad_nd.default,
        aten.mm.default, aten.bmm.default, aten.mul.Tensor,
    }
)  # fmt: skip
"""Linear in each operand by itself."""

_OF_FIRST = frozenset({aten.div.Tensor})
_OF_PLACES: dict[OpOverload, tuple[int, ...]] = {
    aten.add.Tensor: (0, 1),
    aten.sub.Tensor: (0, 1),
    aten.where.self: (1, 2),
    aten.scatter.src: (0, 3),
    aten.scatter_add.default: (0, 3),
}
"""Linear in the operands at these places together, so that each is a multiple or zero."""
_ZEROS = frozenset({aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default})
_FILLED: dict[OpOverload, int] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.scalar_tensor.default: 0,
}


def refuse_not_linear(nodes: Iterable[fx.Node], tainted: Collection[fx.Node]) -> None:
    """Refuse a gradient that is not known to be a multiple of the one that arrives.

    Args:
        nodes: what the backward pass computes.
        tainted: what depends on the gradient that arrives.

    Raises:
        Declined: the message names the operator.
    """
    for node in nodes:
        if node in tainted and not _is_linear(node, tainted):
            raise Declined(
                f"{node.name} ({node.target}) is not known to be linear in the gradient that "
                "arrives, which cannot be multiplied in afterwards then"
            )


def _is_linear(node: fx.Node, tainted: Collection[fx.Node]) -> bool:
    target, operands = node.target, _operands(node)
    mine = [n for n in operands if n in tainted]
    if _is_zero(node):
        return True
    if is_view(node) or target in _OF_ONE:
        return len(mine) == 1
    if target in _OF_FIRST or _is_backward(target):
        return len(mine) == 1 and mine[0] is node.args[0]
    if target is aten.masked_fill.Scalar:
        return len(mine) == 1 and mine[0] is node.args[0] and bool(node.args[2] == 0)
    places = _OF_PLACES.get(target) if isinstance(target, OpOverload) else None
    if places is None:
        return target is aten.cat.default and len(mine) == len(operands)
    sums = [node.args[i] for i in places]
    beside = [n for n in mine if n not in sums]
    return not beside and all(n in mine or _is_zero(n) for n in sums)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the operands, one that is given twice twice."""
    flat, _ = tree_flatten((node.args, node.kwargs))
    return [n for n in flat if isinstance(n, fx.Node)]


def _is_backward(target: Any) -> bool:
    """Tell a kernel of the backward pass: linear in its first argument, the gradient."""
    name = target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""
    return name.endswith(("_backward", "_backward_data"))


def _is_zero(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if is_view(node) or node.target in (aten.expand.default, aten._to_copy.default):
        return _is_zero(node.args[0])
    place = _FILLED.get(node.target) if isinstance(node.target, OpOverload) else None
    return node.target in _ZEROS or (place is not None and bool(node.args[place] == 0))
