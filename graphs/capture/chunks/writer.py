"""Write a joint graph anew with its loss in chunks of the tokens.

In form A the forward pass computes the loss chunk by chunk, and the backward pass its gradients
likewise; whether the logits of a chunk are held in between or made again is for a schedule to say.
In form B each chunk goes forward and backward at once, in the forward pass, as if the gradient that
arrives at the loss were 1; what comes out is multiplied by it later, when it has arrived.

A weight's gradient is added up in place; in float32, if the product is narrower, so that no chunk
is rounded to less than the whole would be. Knows the region that is written anew, nothing else of
the model.
"""

from __future__ import annotations

import enum
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.chunks.editing import call, renew_views, sweep, views_in, with_results
from planner.graphs.capture.chunks.linear import refuse_not_linear
from planner.graphs.capture.chunks.region import Leaves, Region
from planner.graphs.capture.chunks.sums import AddedInPlace
from planner.graphs.capture.chunks.token_dims import (
    FILLED,
    NLL,
    SIZED,
    cut,
    shape,
    value,
)
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import is_random
from planner.graphs.capture.rewrites import Declined
from planner.graphs.costs.roofline import tensors_in

aten = torch.ops.aten

_NARROW = (torch.float16, torch.bfloat16)
_MEAN, _SUM, _NONE = 1, 2, 0
"""What torch calls the reductions of a loss."""


class Form(enum.Enum):
    """When the backward pass of a chunk runs."""

    A = "forward passes of all chunks, then backward passes"
    B = "forward and backward pass of each chunk in turn"


@dataclass(frozen=True)
class Span:
    """The tokens of a chunk, from the first up to the one after its last."""

    first: int
    end: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.end - self.first


def spans(tokens: int, chunks: int) -> list[Span]:
    """Divide tokens into chunks, the larger first; with fewer tokens none is larger.

    >>> [s.count for s in spans(11, 4)]
    [3, 3, 3, 2]
    """
    size, more = divmod(tokens, chunks)
    edges = [i * size + min(i, more) for i in range(chunks + 1)]
    return [Span(a, b) for a, b in itertools.pairwise(edges)]


@dataclass
class Writer:
    """The graph of a step while its region is written anew; it is changed in place."""

    joint: Joint
    region: Region
    chunks: int
    totals: dict[fx.Node, fx.Node] = field(default_factory=dict)
    parts: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    counts: dict[fx.Node, fx.Node] = field(default_factory=dict)
    became: dict[fx.Node, fx.Node] = field(default_factory=dict)
    exact: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """For what is narrower than the sum it is rounded from, that sum."""
    moved: set[fx.Node] = field(default_factory=set)

    @property
    def graph(self) -> fx.Graph:
        """The graph that is written."""
        return self.joint.graph

    def write(self, form: Form) -> Joint:
        """Return the step in chunks.

        Raises:
            Declined: this form cannot be written.
        """
        views, before = views_in(self.graph), list(self.graph.nodes)
        used = {n for n in before if n.users}
        nodes = self.region.nodes
        early = [n for n in nodes if not self.region.is_late(n)]
        late = [n for n in nodes if self.region.is_late(n)]
        if not late:
            raise Declined("no gradient is computed of the loss")
        self._hoist(self.region.operands(early), early[0])
        with self.graph.inserting_before(early[0]):
            self._count_labels(early)
        if form is Form.A:
            self._forward_then_backward(early, late)
        else:
            self._each_in_turn(early, late)
        renew_views(self.graph, self.became.values(), views)
        joint = with_results(self.joint, self.became)
        joint = AddedInPlace(joint, self.became, self.exact).joint_of_sums()
        sweep(self.graph, used, before)
        try:
            self.graph.lint()
        except RuntimeError as error:
            raise Declined(f"its chunks are no valid graph: {error}") from error
        return joint

    def _forward_then_backward(self, early: list[fx.Node], late: list[fx.Node]) -> None:
        divided = spans(self.region.tokens, self.chunks)
        carried: list[dict[fx.Node, fx.Node]] = [{} for _ in divided]
        with self.graph.inserting_before(early[0]):
            for span, env in zip(divided, carried, strict=True):
                self._chunk(early, span, env)
            self._finish(early)
        self._hoist(self.region.operands(late), late[0])
        with self.graph.inserting_before(late[0]):
            for span, env in zip(divided, carried, strict=True):
                kept = {n: made for n, made in env.items() if n in set(self.region.inside)}
                self._chunk(late, span, kept)
            self._finish(late)

    def _each_in_turn(self, early: list[fx.Node], late: list[fx.Node]) -> None:
        tangent, tainted = self._factor()
        refuse_not_linear(late, tainted)
        start = early[0]
        operands = list(self.region.operands(late))
        with self.graph.inserting_before(start):
            unit = _AtOne(self, tangent, tainted, start)
            instead = {n: unit.of(n) for n in operands if n in tainted}
        self._hoist((n for n in operands if n not in tainted), start)
        for node, made in instead.items():
            if node in self.region.dims:
                self.region.dims[made] = self.region.dims[node]
        for node in late:
            node.args, node.kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: instead.get(n, n)
            )
        with self.graph.inserting_before(start):
            for span in spans(self.region.tokens, self.chunks):
                self._chunk([*early, *late], span, {})
            self._finish(early)
            for node in self._exits(late):
                if self.region.exits[node] in (Leaves.ROWS, Leaves.LOSSES):
                    self.totals[node] = self._rows(node)
        with self.graph.inserting_before(late[0]):
            for node in self._exits(late):
                if node in tainted:
                    total = self.totals[node]
                    self.totals[node] = self.call(aten.mul_.Tensor, (total, tangent), like=node)
                self._done(node, self._narrowed(node))

    def _factor(self) -> tuple[fx.Node, set[fx.Node]]:
        """Return the gradient that all of the loss's gradients are a multiple of, and all those."""
        behind: dict[fx.Node, set[fx.Node]] = {n: {n} for n in self.joint.tangents.values()}
        for node in self.graph.nodes:
            found = set[fx.Node]().union(*(behind.get(n, ()) for n in node.all_input_nodes))
            if found:
                behind.setdefault(node, found)
        late = (n for n in self.region.nodes if n in behind)
        factors = set[fx.Node]().union(*(behind[n] for n in late))
        if len(factors) != 1 or value(next(iter(factors))).dim():
            raise Declined("gradients arrive at more than one number, so none is a factor of all")
        if any(t.dtype is torch.float16 for n in self.region.inside for t in tensors_in(value(n))):
            raise Declined("in float16 a factor that comes last is no scale against underflow")
        return factors.pop(), set(behind)

    def _exits(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return [n for n in nodes if n in self.region.exits]

    def call(
        self, target: Any, args: Sequence[Any], kwargs: Any = None, *, like: fx.Node
    ) -> fx.Node:
        """Write a call where the graph is inserting.

        Args:
            target, args, kwargs: what is called.
            like: the node of the step as captured that it stands in for.
        """
        return call(self.graph, target, args, kwargs, like=like)

    def _hoist(self, wanted: Iterable[fx.Node], before: fx.Node) -> None:
        """Move what is needed in front of a node."""
        position, found = self.region.position, set[fx.Node]()
        ahead = list(wanted)
        while ahead:
            node = ahead.pop()
            fixed = node.op == "placeholder" or node in self.moved or node not in position
            if fixed or node in found or position[node] < position[before]:
                continue
            if node in self.region.exits or (node in self.region.dims and node in self._inside):
                raise Declined("the gradient depends on the value of the loss")
            if is_random(node):
                raise Declined(f"{node.name} draws random numbers, whose order has to stay")
            found.add(node)
            ahead += node.all_input_nodes
        for node in sorted(found, key=position.__getitem__):
            before.prepend(node)
        self.moved |= found

    @property
    def _inside(self) -> frozenset[fx.Node]:
        return frozenset(self.region.inside)

    def _count_labels(self, nodes: Sequence[fx.Node]) -> None:
        """Write how many labels each loss counts, which is what it is divided by."""
        for node in nodes:
            if node.target not in NLL:
                continue
            labels, ignored = node.args[1], node.args[4]
            counted = self.call(aten.ne.Scalar, (labels, ignored), like=node)
            count = self.call(aten.sum.default, (counted,), like=node)
            self.counts[node] = self.call(
                aten._to_copy.default, (count,), {"dtype": torch.float32}, like=node
            )
            weight = self.counts[node]
            if (dtype := value(node)[1].dtype) is not torch.float32:
                weight = self.call(aten._to_copy.default, (weight,), {"dtype": dtype}, like=node)
            for user in list(node.users):
                if user.args[1] == 1:
                    user.replace_all_uses_with(weight)

    def _chunk(self, nodes: Sequence[fx.Node], span: Span, env: dict[fx.Node, fx.Node]) -> None:
        """Write a chunk of the nodes; ``env`` has what was written of it so far."""
        for node in nodes:
            args, kwargs = self._cut_arguments(node, span, env)
            way = self.region.exits.get(node)
            if way is None:
                env[node] = self.call(node.target, args, kwargs, like=node)
            elif way is Leaves.PRODUCT:
                self._add_product(node, args)
            elif way is Leaves.LOSS:
                self._add(node, self._loss(node, args))
            elif way is Leaves.SUM:
                self._add(node, self._wide(self.call(node.target, args, kwargs, like=node)))
            else:
                made = self.call(node.target, args, kwargs, like=node)
                if way is Leaves.LOSSES:
                    made = self.call(operator.getitem, (made, 0), like=node)
                self.parts.setdefault(node, []).append(made)

    def _cut_arguments(
        self, node: fx.Node, span: Span, env: dict[fx.Node, fx.Node]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def of_chunk(operand: fx.Node) -> fx.Node:
            if operand not in env and operand in self.region.dims:
                env[operand] = self._sliced(operand, span)
            return env.get(operand, operand)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), of_chunk)
        if node.target in FILLED:
            args = (cut(shape(node), self.region.dims[node], span.count), *args[1:])
        elif node.target in SIZED:
            args = (args[0], cut(shape(node), self.region.dims[node], span.count), *args[2:])
        return args, kwargs

    def _sliced(self, node: fx.Node, span: Span) -> fx.Node:
        """Write the part of a tensor from outside that belongs to a chunk: a view of it."""
        dims, sizes = self.region.dims[node], shape(node)
        first, last = dims[0], dims[-1]
        between = math.prod(sizes[first : last + 1])
        if between != self.region.tokens:
            raise Declined(f"the tokens of {node.name} do not lie in neighbouring dimensions")
        flat = node
        if first != last:
            rows = [*sizes[:first], between, *sizes[last + 1 :]]
            flat = self.call(aten.reshape.default, (node, rows), like=node)
        made = self.call(aten.slice.Tensor, (flat, first, span.first, span.end), like=node)
        if first != last:
            made = self.call(aten.view.default, (made, cut(sizes, dims, span.count)), like=node)
        return made

    def _loss(self, node: fx.Node, args: Sequence[Any]) -> fx.Node:
        """Write the sum of a chunk's losses, in float32: a narrower kernel would round it."""
        narrow = value(node)[0].dtype in _NARROW
        way = _NONE if narrow else _SUM
        made = self.call(node.target, (*args[:3], way, *args[4:]), like=node)
        made = self.call(operator.getitem, (made, 0), like=node)
        if not narrow:
            return made
        return self.call(aten.sum.default, (made,), {"dtype": torch.float32}, like=node)

    def _wide(self, node: fx.Node) -> fx.Node:
        """Return what a node makes in no less than float32."""
        if value(node).dtype not in _NARROW:
            return node
        return self.call(aten._to_copy.default, (node,), {"dtype": torch.float32}, like=node)

    def _add(self, node: fx.Node, part: fx.Node) -> None:
        total = self.totals.get(node)
        added = total and self.call(aten.add.Tensor, (total, part), like=node)
        self.totals[node] = added or part

    def _add_product(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        total = self.totals.get(node)
        if total is None:
            self.totals[node] = self._wide(self.call(node.target, args, like=node))
        elif value(node).dtype in _NARROW:
            made = self.call(node.target, args, like=node)
            self.totals[node] = self.call(aten.add_.Tensor, (total, made), like=node)
        else:
            self.totals[node] = self.call(aten.addmm_.default, (total, *args), like=node)

    def _finish(self, nodes: Iterable[fx.Node]) -> None:
        for node in self._exits(nodes):
            way = self.region.exits[node]
            if way in (Leaves.ROWS, Leaves.LOSSES):
                self.totals[node] = self._rows(node)
            elif way is Leaves.LOSS and node.args[3] == _MEAN:
                pair = (self.totals[node], self.counts[node])
                self.totals[node] = self.call(aten.div.Tensor, pair, like=node)
            self._done(node, self._narrowed(node))

    def _rows(self, node: fx.Node) -> fx.Node:
        """Write the rows of all chunks, one after another."""
        made = value(node)
        sizes = list(made[0].shape if isinstance(made, tuple) else made.shape)
        dims = self.region.dims[node]
        whole = self.call(aten.cat.default, (self.parts[node], dims[-1]), like=node)
        if list(shape(whole)) == sizes:
            return whole
        return self.call(aten.view.default, (whole, sizes), like=node)

    def _narrowed(self, node: fx.Node) -> fx.Node:
        """Return the total of an exit in the dtype that the step has it in."""
        total = self.totals[node]
        wanted: Tensor = next(iter(tensors_in(value(node))))
        if value(total).dtype == wanted.dtype:
            return total
        made = self.call(aten._to_copy.default, (total,), {"dtype": wanted.dtype}, like=node)
        self.exact[made] = total
        return made

    def _done(self, node: fx.Node, made: fx.Node) -> None:
        """Let everybody read what was made of the chunks."""
        if self.region.exits[node] in (Leaves.LOSS, Leaves.LOSSES):
            for user in list(node.users):
                if user.args[1] == 0:
                    user.replace_all_uses_with(made)
                    self.became[user] = made
            return
        node.replace_all_uses_with(made)
        self.became[node] = made


@dataclass
class _AtOne:
    """What the backward pass reads of the gradient that arrives, as it is where that is 1."""

    writer: Writer
    tangent: fx.Node
    tainted: set[fx.Node]
    before: fx.Node
    known: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def of(self, node: fx.Node) -> fx.Node:
        """Write a node anew for a gradient of 1.

        Raises:
            Declined: it depends on what the chunks are yet to compute.
        """
        if node not in self.tainted:
            self.writer._hoist([node], self.before)
            return node
        if node in self.known:
            return self.known[node]
        if node in self.writer.region.exits or node in self.writer.region.inside:
            raise Declined("the gradient depends on the value of the loss")
        if node is self.tangent:
            arrived = value(node)
            kwargs = {"dtype": arrived.dtype, "device": arrived.device}
            made = self.writer.call(aten.full.default, ([], 1.0), kwargs, like=self.before)
        else:
            refuse_not_linear([node], self.tainted)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.of)
            made = self.writer.call(node.target, args, kwargs, like=node)
        self.known[node] = made
        return made
