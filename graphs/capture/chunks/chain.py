"""Find chains of token-wise operators between two small tensors: what widens and narrows again.

An MLP is one: products of hidden states with weights that make them wider, pointwise operators on
these, a product that makes them narrow again, and the gradients of all of it. By structure, as the
loss: from a product that widens, what reads it and is as large, in both passes, and what else is as
large and meets it there (the product of a gate, that of the gradient that arrives). Knows nothing
of how chunks are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import fx

from planner.graphs.capture.chunks.region import FEWEST, Leaves, Region, elements, leaving, products
from planner.graphs.capture.chunks.token_dims import PRODUCTS, SPREADS, TokenDims, shape, value
from planner.graphs.capture.chunks.writer import Form, Writer
from planner.graphs.capture.joint_graph import Joint, copied
from planner.graphs.capture.passes.eager_semantics import first_backward
from planner.graphs.capture.rewrites import Declined


def with_chains(joint: Joint, chunks: int) -> Joint:
    """Return a step with every chain that can be in chunks in so many of them.

    The forward pass goes through the chunks of a chain, and so does its backward pass: what is
    inside of a chunk is held in between or made again, as a schedule says.

    Args:
        joint: the captured step, which is changed.
        chunks: how many.

    Raises:
        Declined: it has no chain; the message says why, of the largest product.
    """
    reasons, found = list[str](), 0
    for name in [product.name for product in products(joint)]:
        trial = copied(joint)  # what is declined while it is written leaves nothing behind
        product = next((n for n in trial.graph.nodes if n.name == name), None)
        if product is None:
            continue  # it was in the chain of another
        try:
            joint = Writer(trial, find_chain(trial, product), chunks).write(Form.A)
        except Declined as reason:
            reasons.append(str(reason))
        else:
            found += 1
    if not found:
        nothing = "no product makes something wider than the hidden states it is made of"
        raise Declined(next(iter(reasons), nothing))
    return joint


def find_chain(joint: Joint, product: fx.Node) -> Region:
    """Return the chain that a product begins.

    Args:
        joint: the captured step.
        product: of hidden states and a weight, in the forward pass.

    Raises:
        Declined: what is computed of it is no such chain.
    """
    chain = _Chain(joint, product)
    chain.grow()
    return chain.region()


class _Chain:
    """The nodes as large as a product that are computed of it, or meet it, token by token."""

    def __init__(self, joint: Joint, product: fx.Node) -> None:
        self.joint, self.product, self.size = joint, product, elements(product)
        self.hidden: Any = product.args[-2]
        self.dims = TokenDims(shape(product)[0], of=product.name)
        if self.dims.tokens < FEWEST:
            raise Declined(f"{product.name} is of one token")
        self.dims.carry(self.hidden, (0,))
        self.dims.enter(product)

    def grow(self) -> None:
        """Take in what reads the chain and is as large, until nothing more does."""
        large = [n for n in self.joint.graph.nodes if self._is_large(n)]
        known = 0
        while known < len(self.dims.region):
            known = len(self.dims.region)
            for node in large:
                if self._reads(node) and not self._is_gradient_of_weight(node):
                    self._take(node)

    def _is_large(self, node: fx.Node) -> bool:
        return elements(node) == self.size

    def _reads(self, node: fx.Node) -> bool:
        dims = self.dims
        called = node.op == "call_function" and not dims.inside(node)
        return called and any(map(dims.inside, node.all_input_nodes))

    def _is_gradient_of_weight(self, node: fx.Node) -> bool:
        """Tell a product that sums over tokens, whose result may be as large by chance."""
        return node.target in PRODUCTS and self.dims.of.get(node.args[-2]) != (0,)  # type: ignore[arg-type]

    def _take(self, node: fx.Node) -> None:
        """Take in a node that reads the chain, after what else it reads that is as large."""
        rows = [node.args[-2]] if node.target in PRODUCTS else node.all_input_nodes
        for operand in cast(Sequence[fx.Node], rows):  # what a product multiplies them by is whole
            if self._is_large(operand) and not self.dims.inside(operand):
                self._meet(operand)
        self.dims.enter(node)

    def _meet(self, node: fx.Node) -> None:
        """Take in a node that does not read the chain, and what it is made of that is as large."""
        if node.target in PRODUCTS:
            narrow: Any = node.args[-2]
            if shape(node)[0] != self.dims.tokens or value(narrow).numel() >= self.size:
                raise Declined(f"{node.name} meets {self.product.name}, and is of other tokens")
            self.dims.carry(narrow, (0,))
            self.dims.enter(node)
            return
        if node.target in SPREADS:
            raise Declined(f"{node.name} spreads a small tensor over {self.product.name}")
        self._take(node)

    def region(self) -> Region:
        """Return what is inside and what leaves.

        Raises:
            Declined: it is no chain.
        """
        dims, nodes, name = self.dims, list(self.joint.graph.nodes), self.product.name
        kept = {*self.joint.forward_outputs, *self.joint.mutations.values(), *self.joint.gradients}
        if held := [n for n in dims.region if n in kept]:
            raise Declined(f"{held[0].name}, computed of {name}, is a result of the step")
        exits = {n: leaving(n, dims) for n in nodes if self._reads(n)}
        if any(way in (Leaves.LOSS, Leaves.LOSSES) for way in exits.values()):
            raise Declined(f"a loss is computed of {name}, which loss_chunks= is for")
        rows = [n for n, way in exits.items() if way is Leaves.ROWS]
        for node in (*dims.region, *rows):
            if node.target in PRODUCTS and node.args[-1] in dims.of:
                raise Declined(f"{node.name} multiplies tokens by others")
        position = {n: i for i, n in enumerate(nodes)}
        border = first_backward(self.joint)
        if not any(position[n] >= border for n in (*dims.region, *exits)):
            raise Declined(f"no gradient is computed of {name}")
        return Region(
            product=self.product,
            hidden=self.hidden,
            inside=tuple(sorted(dims.region, key=position.__getitem__)),
            exits=exits,
            dims=dict(dims.of),
            tokens=dims.tokens,
            border=border,
            position=position,
            returned=(),
        )
