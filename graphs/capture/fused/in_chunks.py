"""The loss of a compiled step in chunks: its joint graph rewritten before it is cut.

Where the operators of a loss were kept while the step was traced, it is found and written as in a
step that runs op by op. What then adds in place to what a weight's gradient is added up in is left
so; whatever else was written is as Inductor has it. Knows nothing of kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from planner.graphs.capture.chunks.editing import call
from planner.graphs.capture.chunks.rewrite import WHEN_READ
from planner.graphs.capture.guards.tape import Decisions
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import added_to
from planner.graphs.capture.rewrites import Declined, rewritten
from planner.graphs.capture.step_outputs import Outputs
from planner.graphs.torch_api.inductor.kept_operators import let_go
from planner.graphs.torch_api.inductor.near_fusions import keep_apart
from planner.graphs.torch_api.inductor.partitioner import JointStep, copy_of, tag
from planner.graphs.torch_api.inductor.sums_in_place import ADDED
from planner.graphs.torch_api.pytree import tree_flatten

aten, prims = torch.ops.aten, torch.ops.prims

_ANEW = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor}
"""Pointwise operators that write into an operand, and those that Inductor lets do so by itself."""


def in_chunks(step: JointStep, rewrite: str) -> JointStep:
    """Return a step rewritten, ready to be cut.

    Args:
        step: as Inductor hands it over, the operators of losses kept; it is not changed.
        rewrite: by name.

    Raises:
        Declined: the rewrite does not suit it.
        ValueError: there is no such rewrite.
    """
    if rewrite.endswith(WHEN_READ):
        raise Declined("a compiled step returns what it computes, nothing that is computed later")
    if step.largest.numbers:
        raise Declined("its sizes are symbols (torch.compile(..., dynamic=False) makes none)")
    before = {n.name for n in step.module.graph.nodes}
    whole = _joint_of(step.of(copy_of(step.module)))
    for node in whole.graph.nodes:
        if node.target is prims.convert_element_type.default:
            node.target, node.kwargs = aten._to_copy.default, {"dtype": node.args[1]}
            node.args = node.args[:1]
    try:
        module = rewritten(whole, rewrite)[0].module
    except Declined as reason:
        if len(whole.tangents) < 2:
            raise
        raise Declined(
            f"{reason}; where the step returns more than its loss, let it return that alone, such "
            "as with loss=lambda output: output.loss"
        ) from reason
    graph = module.graph
    fresh = [n for n in graph.nodes if n.name not in before]
    for node in graph.nodes:
        if node.target is aten._to_copy.default and node.kwargs.keys() == {"dtype"}:
            node.target, node.args = (
                prims.convert_element_type.default,
                (*node.args, *node.kwargs.values()),
            )
            node.kwargs = {}
    for node in fresh:
        _in_place(node)
        _in_its_place(graph, node)
        keep_apart(node)
    let_go(module, [n for n in graph.nodes if n.name not in before and added_to(n) is None])
    _tag(graph)
    graph.lint()
    return step.of(module)


def _joint_of(step: JointStep) -> Joint:
    """Return a step as what is rewritten: by the names that Inductor has for its tensors."""
    graph = step.module.graph
    placeholders = graph.find_nodes(op="placeholder")
    arriving = [n for n in placeholders if n.name.startswith("tangents")]
    own = placeholders[: len(placeholders) - len(arriving)]
    output = graph.output_node()
    (made,) = output.args
    assert isinstance(made, tuple | list)
    gradients: dict[fx.Node, Any] = dict(zip(own, made[step.forward_outputs :], strict=True))
    static = [own[place] for place in step.static]
    trained = {n.name: n for n in static if gradients[n] is not None}
    inputs = tuple(n for n in own if n not in static)
    said = (output.meta["desc"][i] for i in range(step.forward_outputs))
    returned = [(d, n) for d, n in zip(said, made, strict=False) if isinstance(n, fx.Node)]
    tangents = {n.meta["desc"].output: n for n in arriving}
    outputs = Outputs(
        spec=tree_flatten(())[1],
        slots=(),
        constants=(),
        names=tuple(n.name for _, n in returned),
        differentiable=tuple(d in tangents for d, _ in returned),
        refused=(),
    )
    return Joint(
        module=step.module,
        parameters=trained,
        buffers={n.name: n for n in static if n.name not in trained},
        inputs=inputs,
        tangents={i: tangents[d] for i, (d, _) in enumerate(returned) if d in tangents},
        forward_outputs=tuple(n for _, n in returned),
        mutations={},
        gradients=tuple(gradients[n] for n in (*trained.values(), *inputs)),
        outputs=outputs,
        decisions=Decisions(),
    )


def _in_place(node: fx.Node) -> None:
    """Let what adds to a sum be an effect on it, and what Inductor may write in place be its own.

    Raises:
        Declined: it is not known how.
    """
    if node.op != "call_function" or (written := added_to(node)) is None:
        return
    if node.target in _ANEW:
        node.target = _ANEW[node.target]
        return
    if node.target is aten.index_add_.default:
        base, dim, index, added = node.args
        assert dim == 0, "rows are added"
        node.target, node.args = aten.index_put_.default, (base, [index], added, True)
    elif node.target is not ADDED:
        raise Declined(f"{node.name} ({node.target}) writes where a compiler is not known to")
    node.replace_all_uses_with(written)


def _in_its_place(graph: fx.Graph, node: fx.Node) -> None:
    """Let a bias's gradient be a product: Inductor makes one kernel of the sums of all chunks, for
    which it holds all of their logits' gradients.
    """
    if node.target is not aten.sum.dim_IntList or node.args[1] != [0]:
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given = source.meta["val"]
    if given.dim() != 2 or not given.is_floating_point() or given.dtype != node.meta["val"].dtype:
        return
    kind = {"dtype": given.dtype, "device": given.device}
    with graph.inserting_before(node):
        ones = call(graph, aten.full.default, ([given.shape[0], 1], 1.0), kind, like=node)
        turned = call(graph, aten.permute.default, (source, [1, 0]), like=node)
        summed = call(graph, aten.mm.default, (turned, ones), like=node)
        seen = call(graph, aten.view.default, (summed, list(node.meta["val"].shape)), like=node)
    node.replace_all_uses_with(seen)
    graph.erase_node(node)


def _tag(graph: fx.Graph) -> None:
    """Say of every node whether it waits for a gradient to arrive, and is the backward pass's."""
    late = {n for n in graph.find_nodes(op="placeholder") if n.name.startswith("tangents")}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if not late.isdisjoint(node.all_input_nodes):
            late.add(node)
        tag(node, backward=node in late)
