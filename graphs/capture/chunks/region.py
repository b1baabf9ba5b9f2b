"""Find the head of a language model in a joint graph, and everything as large as its logits.

By structure: a product of hidden states and a weight whose result is much larger than the hidden
states, and what is computed of it token by token, a softmax among it, in both passes. What leaves
is small: a sum over tokens, a value for each, a product. Knows nothing of how chunks are written.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.chunks.token_dims import (
    NLL,
    PRODUCTS,
    SCATTERS,
    SOFTMAX,
    SPREADS,
    VIEWS,
    Dims,
    TokenDims,
    dimension,
    reduced,
    shape,
    value,
    without,
)
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.passes.eager_semantics import first_backward
from planner.graphs.capture.rewrites import Declined
from planner.graphs.costs.roofline import tensors_in

aten = torch.ops.aten


FEWEST = 2
"""Tokens that can be told from a dimension of one."""


class Leaves(enum.Enum):
    """How something small comes out of the logits."""

    LOSS = "the sum of the losses of all tokens"
    LOSSES = "a loss for each token"
    SUM = "a sum over all tokens"
    PRODUCT = "a product that sums over all tokens, a weight's gradient"
    ROWS = "a row for each token"


@dataclass(frozen=True)
class Region:
    """What is as large as the logits, and what leaves it.

    ``product`` makes the logits of ``hidden``; ``inside`` are the nodes of that size, ``exits``
    those that read them and are smaller, both in the graph's order. ``dims`` says where tokens lie
    in all of these and in what is cut where it enters. ``border`` is the position of the first node
    of the backward pass. ``returned`` are the outputs of the model that are inside.
    """

    product: fx.Node
    hidden: fx.Node
    inside: tuple[fx.Node, ...]
    exits: dict[fx.Node, Leaves]
    dims: dict[fx.Node, Dims]
    tokens: int
    border: int
    position: dict[fx.Node, int]
    returned: tuple[int, ...]

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes inside and those that leave, in order."""
        return sorted((*self.inside, *self.exits), key=self.position.__getitem__)

    def is_late(self, node: fx.Node) -> bool:
        """Tell a node of the backward pass."""
        return self.position[node] >= self.border

    def operands(self, nodes: list[fx.Node]) -> Iterator[fx.Node]:
        """Yield what nodes read that is neither inside nor leaves, each once."""
        found = (n for node in nodes for n in node.all_input_nodes)
        known = {*self.inside, *self.exits}
        yield from dict.fromkeys(n for n in found if n not in known)


def find_region(joint: Joint) -> Region:
    """Find the head and the loss of a step.

    Raises:
        Declined: there is none that can be computed in chunks; the message says why, of the largest
            product.
    """
    reasons: list[str] = []
    for product in heads(joint):
        try:
            return _grown(joint, product)
        except Declined as reason:
            reasons.append(str(reason))
    if reasons:
        raise Declined(reasons[0])
    if largest := next(iter(products(joint)), None):
        raise _no_softmax(largest)
    raise Declined("no product makes something much larger than the hidden states it is made of")


def heads(joint: Joint) -> list[fx.Node]:
    """Return the products of which a softmax may be computed element by element, the largest first.

    Those that it can be traced back to through nothing smaller: it may be of a slice of them.
    """
    operands = (n.all_input_nodes[0] for n in joint.graph.nodes if n.target in SOFTMAX)
    ahead = sorted(((n, elements(n)) for n in operands), key=lambda x: x[1], reverse=True)
    large, seen = dict.fromkeys(products(joint)), set[fx.Node]()
    while ahead:
        node, size = ahead.pop()
        if node not in seen and elements(node) >= size:
            seen.add(node)
            ahead += [(n, size) for n in node.all_input_nodes if node not in large]
    return [n for n in large if n in seen]


def _no_softmax(product: fx.Node) -> Declined:
    return Declined(
        f"no softmax is computed of {product.name}, the largest product (if the loss is taken "
        "outside of the model, pass it as loss=)"
    )


def products(joint: Joint) -> list[fx.Node]:
    """Return the products of a weight that make more than they are given, the largest first.

    Args:
        joint: whose forward pass is looked at.
    """
    given = {*joint.parameters.values(), *joint.buffers.values()}

    def is_weight(node: Any) -> bool:
        while node not in given and isinstance(node, fx.Node) and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        return node in given

    found: list[fx.Node] = []
    for node in list(joint.graph.nodes)[: first_backward(joint)]:
        if node.target in (aten.mm.default, aten.addmm.default):
            hidden, weight = node.args[-2:]
            large = shape(hidden)[1] < shape(node)[1]
            if large and is_weight(weight) and not is_weight(hidden):
                found.append(node)
    return sorted(found, key=elements, reverse=True)


def elements(node: fx.Node) -> int:
    """Return how many elements the largest tensor has that a kernel makes; 0 for arguments."""
    made = tensors_in(value(node)) if node.op == "call_function" else ()
    return max((t.numel() for t in made), default=0)


def _grown(joint: Joint, product: fx.Node) -> Region:
    nodes = list(joint.graph.nodes)
    position = {n: i for i, n in enumerate(nodes)}
    hidden: Any = product.args[-2]
    size, dims = elements(product), TokenDims(shape(product)[0])
    if dims.tokens < FEWEST:
        raise Declined(f"{product.name}, the largest product, is of one token")
    dims.carry(hidden, (0,))
    dims.enter(product)
    large = [n for n in nodes if n is not product and elements(n) == size]
    for node in large:
        if _is_made_of(node, dims):
            dims.enter(node)
    made_for = _made_for(dims, size)
    for node in reversed(large):
        for operand in made_for.intersection(node.all_input_nodes):
            if node in dims.of and shape(operand) == shape(node):
                dims.of.setdefault(operand, dims.of[node])
    for node in large:
        if node in made_for:
            dims.enter(node)
    if not any(n.target in SOFTMAX and (dims.inside(n) or _reads(n, dims)) for n in nodes):
        raise _no_softmax(product)
    exits = {n: leaving(n, dims) for n in nodes if _reads(n, dims) and not dims.inside(n)}
    _refuse_elsewhere(joint, dims)
    border = first_backward(joint)
    outputs = tuple(i for i, n in enumerate(joint.forward_outputs) if dims.inside(n))
    inside = tuple(sorted(dims.region, key=position.__getitem__))
    return Region(
        product, hidden, inside, exits, dict(dims.of), dims.tokens, border, position, outputs
    )


def _is_made_of(node: fx.Node, dims: TokenDims) -> bool:
    """Tell a node as large as the logits that is made of them; a weight's gradient is not."""
    left: Any = node.args[0] if node.args else None
    return _reads(node, dims) and (node.target is not aten.mm.default or dims.of.get(left) == (0,))


def _made_for(dims: TokenDims, size: int) -> set[fx.Node]:
    """Return the nodes as large as the logits that are spread of something small, for them."""
    known: dict[fx.Node, bool] = {}

    def spreads(node: fx.Node) -> bool:
        if node not in known:
            large = [n for n in node.all_input_nodes if elements(n) == size]
            token_wise = torch.Tag.pointwise in getattr(node.target, "tags", ())
            known[node] = node.target in SPREADS or (
                (token_wise or node.target in SCATTERS or node.target in VIEWS)
                and bool(large)
                and all(dims.inside(n) or spreads(n) for n in large)
            )
        return known[node]

    ahead = [n for node in dims.region for n in node.all_input_nodes]
    found = set[fx.Node]()
    while ahead:
        node = ahead.pop()
        if node in found or dims.inside(node) or elements(node) != size or not spreads(node):
            continue
        found.add(node)
        ahead += node.all_input_nodes
    return found


def _reads(node: fx.Node, dims: TokenDims) -> bool:
    return node.op == "call_function" and any(map(dims.inside, node.all_input_nodes))


def _refuse_elsewhere(joint: Joint, dims: TokenDims) -> None:
    names = joint.outputs.names
    for index, node in enumerate(joint.forward_outputs):
        if dims.inside(node) and joint.outputs.differentiable[index]:
            raise Declined(
                f"output {names[index]!r} of the model is made of the logits token by token, and "
                "is differentiated: the loss is taken outside, where it is not seen; pass it as "
                "loss="
            )
    for what, nodes in (("a buffer", joint.mutations.values()), ("a gradient", joint.gradients)):
        if any(dims.inside(n) for n in nodes):
            raise Declined(f"{what} is as large as the logits, and made of them token by token")


def leaving(node: fx.Node, dims: TokenDims) -> Leaves:
    """Say how a node that is smaller leaves, and note where it has tokens.

    Raises:
        Declined: it is not known how.
    """
    source = next(n for n in node.all_input_nodes if dims.inside(n))
    for known, rule in _RULES.items():
        if node.target in known:
            return rule(node, dims, source)
    raise Declined(
        f"{node.name} ({node.target}) reads {dims.name}, and cannot be computed in chunks"
    )


def _loss_leaving(node: fx.Node, dims: TokenDims, source: fx.Node) -> Leaves:
    if node.args[2] is not None:
        raise Declined("the loss weighs its classes (weight=), which chunks do not so far")
    dims.labels(node.args[1], dims.of[source])
    if node.args[3] != 0:
        return Leaves.LOSS
    dims.of[node] = without(dims.of[source], [1])
    return Leaves.LOSSES


def _reduction_leaving(node: fx.Node, dims: TokenDims, source: fx.Node) -> Leaves:
    held, gone = dims.of[source], reduced(node)
    sums = node.target in (aten.sum.dim_IntList, aten.sum.default)
    if sums and set(held) <= set(gone):
        return Leaves.SUM
    if set(held) & set(gone):
        raise Declined(f"{node.name} ({node.target}) is computed over some of the tokens")
    keeps = len(node.args) > 2 and node.args[2]
    dims.of[node] = held if keeps else without(held, gone)
    return Leaves.ROWS


def _gather_leaving(node: fx.Node, dims: TokenDims, source: fx.Node) -> Leaves:
    if source is not node.args[0] or dimension(node, 1) in dims.of[source]:
        raise Declined(f"{node.name} gathers across tokens")
    dims.carry(node.args[2], dims.of[source])
    dims.of[node] = dims.of[source]
    return Leaves.ROWS


def _product_leaving(node: fx.Node, dims: TokenDims, _source: fx.Node) -> Leaves:
    left, right = node.args[-2:]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    if dims.of.get(left) == (0,) and not dims.inside(right):
        dims.of[node] = (0,)
        return Leaves.ROWS
    if dims.inside(left) and dims.of[left] == (1,) and not dims.inside(right):
        dims.carry(right, (0,))
    elif dims.inside(right) and dims.of[right] == (0,) and not dims.inside(left):
        dims.carry(left, (1,))
    elif dims.of.get(left) != (1,) or dims.of.get(right) != (0,):
        raise Declined(f"{node.name} is a product of {dims.name} that mixes tokens")
    if node.target is not aten.mm.default:
        raise Declined(f"{node.name} adds something to a product that sums over tokens")
    return Leaves.PRODUCT


_RULES: Mapping[frozenset[Any], Callable[[fx.Node, TokenDims, fx.Node], Leaves]] = {
    NLL: _loss_leaving,
    PRODUCTS: _product_leaving,
    frozenset(
        {
            aten.sum.dim_IntList,
            aten.sum.default,
            aten.logsumexp.default,
            aten.amax.default,
        }
    ): _reduction_leaving,
    frozenset({aten.gather.default}): _gather_leaving,
}
