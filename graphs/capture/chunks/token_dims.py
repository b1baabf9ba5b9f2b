"""Along which dimensions of a tensor the tokens lie, and how operators move them.

The dimensions are in order, so that a part of the tokens is a slice of the last of them once the
others are 1. Knows operators, one at a time. Knows nothing of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.node_kinds import is_random
from planner.graphs.capture.rewrites import Declined

aten = torch.ops.aten

Dims = tuple[int, ...]


def value(node: fx.Node) -> Any:
    """Return what a node makes, without data."""
    return node.meta.get("val")


def shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the tensor that a node makes."""
    return tuple(value(node).shape)


VIEWS = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
SIZED = VIEWS | {aten.expand.default, aten.new_zeros.default}
"""Operators whose second argument is a shape."""

_SAME = frozenset(
    {
        aten.detach.default,
        aten.alias.default,
        aten.clone.default,
        aten._to_copy.default,
        aten.zeros_like.default,
        aten.full_like.default,
    }
)
_ROW_WISE = {
    aten._log_softmax.default: 1,
    aten._softmax.default: 1,
    aten._log_softmax_backward_data.default: 2,
    aten._softmax_backward_data.default: 2,
}
"""The place of the dimension among the arguments."""

PRODUCTS = frozenset({aten.mm.default, aten.addmm.default})
FILLED = frozenset({aten.full.default})
SPREADS = FILLED | {aten.expand.default, aten.new_zeros.default}
SCATTERS = frozenset({aten.scatter_add.default, aten.scatter.value})
SOFTMAX = frozenset({aten._log_softmax.default, aten._softmax.default, aten.logsumexp.default})
NLL = frozenset({aten.nll_loss_forward.default, aten.nll_loss2d_forward.default})
NLL_BACKWARD = frozenset({aten.nll_loss_backward.default, aten.nll_loss2d_backward.default})


def moved(before: Sequence[int], after: Sequence[int], dims: Dims) -> Dims | None:
    """Return where tokens lie after a view; ``None`` if it mixes them with others.

    Args:
        before: the shape viewed.
        after: the shape seen.
        dims: where they lie before.

    >>> moved((2, 8, 5), (16, 5), (0, 1)), moved((16, 5), (2, 8, 5), (0,))
    ((0,), (0, 1))
    >>> moved((16, 5), (80,), (0,)) is None
    True
    """
    i = j = 0
    found: list[int] = []
    while i < len(before) or j < len(after):
        left, right = [i][: len(before) - i], [j][: len(after) - j]
        a = before[i] if left else 1
        b = after[j] if right else 1
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        tokens = [d for d in left if d in dims and before[d] != 1]
        others = [d for d in left if d not in dims and before[d] != 1]
        if tokens and others:
            return None
        found += [d for d in right if tokens and after[d] != 1]
    return tuple(found)


def cut(sizes: Sequence[int], dims: Dims, count: int) -> list[int]:
    """Return the shape of ``count`` of the tokens.

    Args:
        sizes: of all of them.
        dims: which of those the tokens lie along.
        count: how many tokens.

    >>> cut((2, 8, 5), (0, 1), 4)
    [1, 4, 5]
    """
    parts = {d: count if d == dims[-1] else 1 for d in dims}
    return [parts.get(d, size) for d, size in enumerate(sizes)]


def without(dims: Dims, gone: Sequence[int]) -> Dims:
    """Return where tokens lie when other dimensions are gone.

    >>> without((0, 2), [1])
    (0, 1)
    """
    return tuple(d - sum(g < d for g in gone) for d in dims)


def dimension(node: fx.Node, place: int) -> int:
    """Return the dimension of what a node makes that it names, counted from the first."""
    said: Any = node.args[place]
    return int(said) % len(shape(node))


def reduced(node: fx.Node) -> list[int]:
    """Return the dimensions that a reduction sums over."""
    source: Any = node.args[0]
    said: Any = node.args[1] if len(node.args) > 1 else None
    rank = len(shape(source))
    return [int(d) % rank for d in said] if said else list(range(rank))


class TokenDims:
    """Where the tokens lie in every tensor that has them: inside of a region, and at its border.

    ``region`` are the nodes inside; others that carry tokens are cut where they enter. What it is
    made of is called ``of``.
    """

    def __init__(self, tokens: int, of: str = "the logits") -> None:
        self.tokens, self.name = tokens, of
        self.of: dict[fx.Node, Dims] = {}
        self.region: dict[fx.Node, None] = {}

    def enter(self, node: fx.Node) -> None:
        """Take a node into the region.

        Raises:
            Declined: it is not computed token by token.
        """
        if is_random(node):
            raise Declined(f"{_name(node)} draws random numbers for {self.name}")
        dims = self._rule(node)
        if list(dims) != sorted(dims) and node.target is not aten.t.default:
            raise Declined(f"{_name(node)} puts the tokens into another order")
        self.of[node] = dims
        self.region[node] = None

    def give(self, node: fx.Node, dims: Dims) -> None:
        """Take a node into the region whose tokens are known to lie along some dimensions."""
        self.of[node] = dims
        self.region[node] = None

    def carry(self, node: Any, dims: Dims) -> None:
        """Note that a tensor from outside has tokens along some dimensions."""
        assert isinstance(node, fx.Node)
        if self.of.setdefault(node, dims) != dims:
            raise Declined(f"{node.name} has the tokens along other dimensions than it is used by")

    def _rule(self, node: fx.Node) -> Dims:
        target: Any = node.target
        for known, rule in _RULES.items():
            if target in known:
                return rule(self, node)
        if target is aten.slice.Tensor and shape(node) == shape(node.all_input_nodes[0]):
            return self._pointwise(node)
        if target in _SAME or torch.Tag.pointwise in getattr(target, "tags", ()):
            return self._pointwise(node)
        raise Declined(f"{_name(node)} is computed of {self.name}, not known token by token")

    def inside(self, node: Any) -> bool:
        """Tell whether a node is in the region."""
        return node in self.region

    def _product(self, node: fx.Node) -> Dims:
        left: Any = node.args[-2]
        if self.of.get(left) == (0,):
            return (0,)
        raise Declined(f"{_name(node)} is a product that mixes tokens")

    def _view(self, node: fx.Node) -> Dims:
        source: Any = node.args[0]
        found = moved(shape(source), shape(node), self.of[source])
        if found is None:
            raise Declined(f"{_name(node)} mixes tokens with what is computed of each")
        return found

    def _transposed(self, node: fx.Node) -> Dims:
        source: Any = node.args[0]
        i, j = (dimension(node, 1), dimension(node, 2)) if len(node.args) > 1 else (0, 1)
        swap = {i: j, j: i}
        return tuple(swap.get(d, d) for d in self.of[source])

    def _permuted(self, node: fx.Node) -> Dims:
        source, said = node.args
        assert isinstance(source, fx.Node)
        rank = len(shape(source))
        before = [int(d) % rank for d in said]  # type: ignore[union-attr,arg-type]
        return tuple(before.index(d) for d in self.of[source])

    def _spread(self, node: fx.Node) -> Dims:
        """A small tensor made as large as the logits."""
        small: Any = node.args[0]
        sizes, out = shape(small), shape(node)
        if math.prod(sizes) == 1 and node in self.of:
            return self.of[node]  # one number for all tokens
        missing = len(out) - len(sizes)
        dims = tuple(d for d, n in enumerate(out) if d >= missing and sizes[d - missing] == n != 1)
        if math.prod(out[d] for d in dims) != self.tokens:
            raise Declined(f"{_name(node)} spreads a tensor that has no value for each token")
        self.carry(small, tuple(d - missing for d in dims))
        return dims

    def _filled(self, node: fx.Node) -> Dims:
        if node not in self.of:
            raise Declined(f"{_name(node)} is for all tokens alike")
        return self.of[node]

    def _scattered(self, node: fx.Node) -> Dims:
        base: Any = node.args[0]
        dims = self.of[base]
        if dimension(node, 1) in dims:
            raise Declined(f"{_name(node)} writes across tokens")
        for operand in node.args[2:4]:
            if isinstance(operand, fx.Node) and not self.inside(operand):
                self.carry(operand, dims)
        return dims

    def _row_wise(self, node: fx.Node) -> Dims:
        place = _ROW_WISE[node.target]  # type: ignore[index]
        dims = self._pointwise(node)
        if dimension(node, place) in dims:
            raise Declined(f"{_name(node)} runs over the tokens")
        return dims

    def _nll_backward(self, node: fx.Node) -> Dims:
        scores: Any = node.args[1]
        dims = self.of[scores]
        self.labels(node.args[2], dims)
        if node.args[4] == 0:
            self.labels(node.args[0], dims)
        return dims

    def labels(self, node: Any, dims: Dims) -> None:
        """Note that a tensor has tokens where scores have them, the classes in dimension 1 gone."""
        self.carry(node, without(dims, [1]))

    def _pointwise(self, node: fx.Node) -> Dims:
        out = shape(node)
        inner = [n for n in node.all_input_nodes if self.inside(n)]
        dims = next((self.of[n] for n in inner if shape(n) == out), None)
        if dims is None:
            raise Declined(f"{_name(node)} spreads {self.name} over something larger")
        for operand in node.all_input_nodes:
            if not self.inside(operand):
                self._beside(node, operand, dims)
            elif self.of[operand] != dims:
                raise Declined(f"{_name(node)} brings different tokens together")
        return dims

    def _beside(self, node: fx.Node, operand: fx.Node, dims: Dims) -> None:
        """Note whether an operand from outside has a value for each token, or is for all alike."""
        if not isinstance(value(operand), Tensor):
            return
        sizes, out = shape(operand), shape(node)
        missing = len(out) - len(sizes)
        wanted = [d for d in dims if out[d] != 1]
        there = [d for d in wanted if d >= missing and sizes[d - missing] == out[d]]
        if there and there == wanted:
            self.carry(operand, tuple(d - missing for d in there))
        elif there:
            raise Declined(f"{operand.name} has a value for some tokens together")


def _name(node: fx.Node) -> str:
    return f"{node.name} ({node.target})"


_RULES: Mapping[frozenset[Any], Callable[[TokenDims, fx.Node], Dims]] = {
    PRODUCTS: TokenDims._product,
    VIEWS: TokenDims._view,
    frozenset({aten.t.default, aten.transpose.int}): TokenDims._transposed,
    frozenset({aten.permute.default}): TokenDims._permuted,
    FILLED: TokenDims._filled,
    SPREADS - FILLED: TokenDims._spread,
    SCATTERS: TokenDims._scattered,
    frozenset(_ROW_WISE): TokenDims._row_wise,
    NLL_BACKWARD: TokenDims._nll_backward,
}
