"""A schedule of kernels as a joint graph that says so: what runs again is a node of backward's own.

Cut where its nodes are tagged, the graph computes any kernel any number of times, in the order of
the schedule. Reads of the plan's graph only names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.fused.closures import written_by
from planner.graphs.capture.fused.copied_inputs import COPY
from planner.graphs.capture.fused.late_kernels import put_off
from planner.graphs.capture.fused.other_calls import OTHERS
from planner.graphs.capture.fused.stitched import Stitched
from planner.graphs.graph import Graph, Phase
from planner.graphs.schedule import Action, Schedule
from planner.graphs.torch_api.inductor.partitioner import JointStep, tag

FAR = 8
"""An addition this many nodes after the product that it adds to is kept apart from it."""

aten = torch.ops.aten


class UnknownValue(ValueError):
    """A plan names a buffer that the step does not have."""


@dataclass
class _Rewriting:
    step: Stitched
    graph: fx.Graph = field(default_factory=fx.Graph)
    live: dict[fx.Node, fx.Node] = field(default_factory=dict)  # what is in memory now
    early: dict[fx.Node, fx.Node] = field(default_factory=dict)  # forward's, on its way to memory
    added_to: set[fx.Node] = field(init=False)  # what a copy of would lack what was added

    def __post_init__(self) -> None:
        self.added_to = {n for n in map(written_by, self.step.graph.nodes) if n is not None}

    def put(self, node: fx.Node, local: dict[fx.Node, fx.Node], *, late: bool) -> fx.Node:
        """Return a node's copy: that in memory, or one computed on the way."""
        ahead = [node]
        while ahead:
            top = ahead[-1]
            waits = [a for a in top.all_input_nodes if self._known(a, local) is None]
            if self._known(top, local) is not None:
                ahead.pop()
            elif waits:
                ahead.extend(waits)
            else:
                ahead.pop()
                if top in self.added_to:
                    raise UnknownValue(f"others write into {top.name!r}, which is not in memory")
                local[top] = self.copy(top, local, late=late)
        found = self._known(node, local)
        assert found is not None, "it was just copied"
        return found

    def copy(self, node: fx.Node, local: dict[fx.Node, fx.Node], *, late: bool) -> fx.Node:
        """Copy one node whose inputs are known."""

        def known(other: fx.Node) -> fx.Node:
            found = self._known(other, local)
            assert found is not None, "inputs come first"
            return found

        made = self.graph.node_copy(node, known)
        made.meta = dict(node.meta)
        tag(made, backward=late)
        return made

    def _known(self, node: fx.Node, local: dict[fx.Node, fx.Node]) -> fx.Node | None:
        return local.get(node) or self.live.get(node)


def rewritten(step: Stitched, graph: Graph, schedule: Schedule) -> JointStep:
    """Return the step as a schedule runs it.

    Args:
        step: with torch's own cut.
        graph: of its kernels; values are named after nodes of the step.
        schedule: that is to be run.

    Raises:
        UnknownValue: the graph is of another step.
    """
    by_name = {n.name: n for n in step.graph.nodes}
    made = _Rewriting(step)
    for node in step.graph.find_nodes(op="placeholder"):
        made.live[node] = made.graph.node_copy(node)
    place = {n: i for i, n in enumerate(step.graph.nodes)}
    (returned,) = step.graph.output_node().args
    assert isinstance(returned, tuple | list)
    count = step.step.forward_outputs
    outputs: list[Any] = []
    seen, late = set[int](), False
    for item in put_off(graph, schedule):
        if item.action is Action.FREE:
            node = by_name.get(graph.values[item.index].name)
            if node is not None and node.op != "placeholder":
                made.live.pop(node, None)
            continue
        op = graph.ops[item.index]
        if op.phase is not Phase.FORWARD and not late:
            # torch takes all nodes before the last one of forward's for forward's
            late, outputs = True, _returned(made, returned[:count], made.early, late=False)
        if op.target in (COPY, OTHERS):
            continue  # the compiler makes it by itself, or has no part in it
        names = [graph.values[v].name for v in op.outputs]
        _run(made, _nodes(names, by_name), place, late=late, again=item.index in seen)
        seen.add(item.index)
    outputs += _returned(made, returned[count:], {}, late=True)
    made.graph.output(tuple(outputs)).meta = dict(step.graph.output_node().meta)
    keep_products_apart(made.graph)
    module = fx.GraphModule(step.step.module, made.graph)
    module.graph.eliminate_dead_code()
    return step.step.of(module)


def _nodes(names: Iterable[str], by_name: dict[str, fx.Node]) -> list[fx.Node]:
    names = list(names)
    if unknown := [n for n in names if n not in by_name]:
        raise UnknownValue(f"the compiled step makes no {unknown[0]!r}, which the plan names")
    return [n for n in map(by_name.__getitem__, names) if n.op != "placeholder"]


def _run(
    made: _Rewriting,
    nodes: list[fx.Node],
    place: dict[fx.Node, int],
    *,
    late: bool,
    again: bool,
) -> None:
    """Copy what one kernel makes, and what it computes on the way."""
    shared = not (late or again)
    local = made.early if shared else {}
    wanted = sorted(nodes, key=place.__getitem__)
    for node in wanted:
        made.live.pop(node, None)
        local.pop(node, None)
    fresh: dict[fx.Node, fx.Node] = {}
    for node in wanted:
        for operand in node.all_input_nodes:
            made.put(operand, local, late=late)
        fresh[node] = local[node] = made.copy(node, local, late=late)
    for node in wanted:
        if shared:
            local.pop(node)
    made.live |= fresh


def _returned(
    made: _Rewriting, nodes: Sequence[object], local: dict[fx.Node, fx.Node], *, late: bool
) -> list[Any]:
    """Return what the step returns: views are made of what is in memory now."""
    return [made.put(n, local, late=late) if isinstance(n, fx.Node) else n for n in nodes]


def keep_products_apart(graph: fx.Graph) -> None:
    """Write ``c - (-a @ b)`` for a sum far from its product, where Inductor would multiply.

    It makes one kernel of ``a @ b + c``, at the place of the sum, and holds ``a`` and ``b`` until
    then. The bits are those of eager mode, which rounds the product and then the sum; the one
    kernel rounds once.

    Args:
        graph: that is changed.
    """
    place = {n: i for i, n in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            continue
        for product, other in (node.args, node.args[::-1]):
            if _far_product(product, node, place) and isinstance(other, fx.Node):
                _subtract(graph, node, product, other)
                break


def _far_product(product: object, node: fx.Node, place: dict[fx.Node, int]) -> bool:
    return (
        isinstance(product, fx.Node)
        and product.target is aten.mm.default
        and len(product.users) == 1
        and place[node] - place[product] > FAR
    )


def _subtract(graph: fx.Graph, node: fx.Node, product: object, other: fx.Node) -> None:
    assert isinstance(product, fx.Node)
    with graph.inserting_before(node):
        negative = graph.call_function(aten.neg.default, (product,))
        negative.meta = {k: v for k, v in product.meta.items() if k != "custom"}
        tag(negative, backward=node.meta["partitioner_tag"] == "is_backward")
        difference = graph.call_function(aten.sub.Tensor, (other, negative))
        difference.meta = dict(node.meta)
    node.replace_all_uses_with(difference)
    graph.erase_node(node)
