"""Let logits that a model returns beside its loss be computed when they are read.

The step returns the hidden states in their place, which it holds anyway, and what is needed to make
the logits of them. Knows torch.fx nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.chunks.editing import sweep
from planner.graphs.capture.chunks.token_dims import VIEWS, value
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.late_outputs import LateOutput
from planner.graphs.capture.node_kinds import is_random, is_view
from planner.graphs.capture.rewrites import Declined

aten = torch.ops.aten


def with_late_logits(joint: Joint, products: Sequence[fx.Node]) -> Joint:
    """Return a step whose outputs that are made of the logits alone are late.

    Args:
        joint: the step, which is changed.
        products: what may make logits.

    Raises:
        Declined: such an output needs more than the hidden states and the model's own tensors.
    """
    outputs, late = list(joint.forward_outputs), list[LateOutput]()
    before = list(joint.graph.nodes)
    used = {n for n in before if n.users}
    for index, node in enumerate(joint.forward_outputs):
        sources = _sources(node, products)
        if not sources or joint.outputs.differentiable[index]:
            continue
        made = node
        while joint.outputs.refused[index] and made.target is aten.detach.default:
            made = _operand(made)  # only the step cuts it off: who differentiates it is told
        found, hidden = _late_of_any(joint, index, made, sources)
        late.append(found)
        with joint.graph.inserting_before(joint.graph.output_node()):
            outputs[index] = joint.graph.call_function(aten.detach.default, (hidden,))
        with value(hidden).fake_mode:
            outputs[index].meta = {**node.meta, "val": aten.detach.default(value(hidden))}
        _return_instead(joint, node, outputs[index])
    if not late:
        return joint
    sweep(joint.graph, used, before)
    described = replace(joint.outputs, late=(*joint.outputs.late, *late))
    return replace(joint, forward_outputs=tuple(outputs), outputs=described)


def _sources(node: fx.Node, products: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the products that a tensor as large as their results is computed from."""
    found, ahead, size = dict[fx.Node, None](), [node], _elements(node)
    while ahead:
        asked = ahead.pop()
        if asked in products:
            found[asked] = None
        elif asked.op == "call_function":
            ahead += [n for n in asked.all_input_nodes if _elements(n) == size]
    return list(found)


def _late_of_any(
    joint: Joint, index: int, made: fx.Node, sources: Sequence[fx.Node]
) -> tuple[LateOutput, fx.Node]:
    """Return how an output is computed of the hidden states of one of its products, and those.

    With an adapter beside the head there are two products, and one is given what the other makes.
    """
    reasons: list[Declined] = []
    hidden_states: list[Any] = [product.args[-2] for product in sources]
    for hidden in (*hidden_states, *map(_uncut, hidden_states)):
        try:
            return _late(joint, index, joint.outputs.names[index], made, hidden), hidden
        except Declined as reason:
            reasons.append(reason)
    raise reasons[0]


def _uncut(node: fx.Node) -> fx.Node:
    """Return what a node is a view or a cast of: two products have one each of the same tensor."""
    while node.op == "call_function" and (
        node.target is aten._to_copy.default or (is_view(node) and node.target in VIEWS)
    ):
        node = _operand(node)
    return node


def _operand(node: fx.Node) -> fx.Node:
    (operand,) = node.all_input_nodes
    return operand


def _elements(node: fx.Node) -> int:
    made = value(node)
    return made.numel() if isinstance(made, Tensor) else 0


def _late(joint: Joint, index: int, name: str, node: fx.Node, hidden: fx.Node) -> LateOutput:
    arguments = [*joint.parameters.values(), *joint.buffers.values(), *joint.inputs]
    graph = fx.Graph()
    known = {hidden: graph.placeholder("hidden")}
    operands: list[fx.Node] = []
    later, given = _made_of(joint, [hidden]), _made_of(joint, joint.inputs)

    def ask(asked: fx.Node) -> None:
        if asked in known:
            return
        if asked in arguments:
            known[asked] = graph.placeholder(asked.name)
            operands.append(asked)
            return
        beside = asked in given and asked not in later and not _is_light(asked)
        if asked.op != "call_function" or beside or is_random(asked):
            raise Declined(
                f"output {name!r} is made of {asked.name}, which is gone when it is read: have the "
                "model return the loss alone"
            )
        for operand in asked.all_input_nodes:
            ask(operand)

    def made(asked: fx.Node) -> fx.Node:
        if asked not in known:
            known[asked] = graph.node_copy(asked, made)
        return known[asked]

    ask(node)
    changed = [n for n in operands if n in [joint.buffers[b] for b in joint.mutations]]
    if changed:
        raise Declined(f"output {name!r} is made of a buffer that the step changes")
    graph.output(made(node))
    compute = fx.GraphModule(joint.module, graph).forward
    places = tuple(arguments.index(n) for n in operands)
    like: Tensor = value(node)
    return LateOutput(index, name, places, compute, like)


def _made_of(joint: Joint, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return some nodes and all that is computed of them."""
    found = set(nodes)
    for node in joint.graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_light(node: fx.Node) -> bool:
    """Tell what may be made of the model's inputs a second time: masks and the like."""
    return (
        torch.Tag.pointwise in getattr(node.target, "tags", ())
        or node.target is aten._to_copy.default
        or is_view(node)
    )


def _return_instead(joint: Joint, old: fx.Node, new: fx.Node) -> None:
    """Let the graph's output be made of another node."""
    output = joint.graph.output_node()
    output.args = fx.node.map_arg(output.args, lambda n: new if n is old else n)
