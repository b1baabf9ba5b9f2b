"""Operators of losses, kept as they are when Inductor traces a step, and let go afterwards.

Inductor has most operators fall apart while it traces: a softmax is pointwise operators and sums by
the time a step can be looked at. What is to be found in it by its operators is traced with a table
that has none for them; to be compiled, they fall apart then. Knows nothing of what is looked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

KEPT = frozenset(
    {
        aten._log_softmax.default,
        aten._log_softmax_backward_data.default,
        aten.logsumexp.default,
        aten.nll_loss_forward.default,
        aten.nll_loss_backward.default,
        aten.nll_loss2d_forward.default,
        aten.nll_loss2d_backward.default,
        aten.embedding_dense_backward.default,
        aten.slice_backward.default,
    }
)
"""The operators of losses that chunks are cut of, the gradients of a tied embedding and of logits
that are dropped.
"""
Table = Mapping[Any, Callable[..., Any]]


def keeping() -> dict[Any, Callable[..., Any]]:
    """Return Inductor's table of how operators fall apart, without those that are kept."""
    return {op: way for op, way in select_decomp_table().items() if op not in KEPT}


@functools.cache
def _apart() -> Table:
    ways = dict.fromkeys((aten.nll_loss_backward.default, aten.nll_loss2d_backward.default), _minus)
    return {**select_decomp_table(), **ways}


def _minus(gradient: Tensor, scores: Tensor, labels: Tensor, *said: Any) -> Any:
    """Write the gradient of a loss token by token: torch scatters it, for which the zeros that it
    is written into have to be in memory.
    """
    weight, reduction, ignored, total = said
    if weight is not None:
        return NotImplemented
    dim = min(1, scores.dim() - 1)
    if reduction == 1:
        gradient = gradient / total
    elif gradient.dim():
        gradient = gradient.unsqueeze(dim)
    sizes = [1] * scores.dim()
    sizes[dim] = scores.shape[dim]
    classes = torch.arange(scores.shape[dim], device=scores.device).view(sizes)
    labels = labels.unsqueeze(dim)
    chosen = (classes == labels) & (labels != ignored)
    return torch.where(chosen, -gradient, torch.zeros((), dtype=scores.dtype, device=scores.device))


def let_go(module: fx.GraphModule, beside: Iterable[fx.Node] = ()) -> None:
    """Let the operators that were kept fall apart, as Inductor has it.

    Args:
        module: with a fake value on every node; its graph is changed.
        beside: other nodes that were written since it was traced.
    """
    wanted = {n for n in beside if n.target in _apart()}
    for node in list(module.graph.nodes):
        if node.target in KEPT or node in wanted:
            _let_go(module.graph, node)


def _let_go(graph: fx.Graph, node: fx.Node) -> None:
    operands = node.all_input_nodes

    def call(*given: Any) -> Any:
        values = dict(zip(operands, given, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    values = [n.meta["val"] for n in operands]
    with _mode(graph):
        parts = make_fx(call, decomposition_table=_apart())(*values)
    placeholders = parts.graph.find_nodes(op="placeholder")
    known = dict(zip(placeholders, operands, strict=True))
    with graph.inserting_before(node):
        for part in (n for n in parts.graph.nodes if n.op == "call_function"):
            known[part] = graph.node_copy(part, known.__getitem__)
            known[part].meta = {**node.meta, "val": part.meta["val"]}
    (made,) = parts.graph.output_node().args
    if isinstance(made, fx.Node):
        node.replace_all_uses_with(known[made])
    else:
        assert isinstance(made, tuple | list)
        for user in list(node.users):  # each takes one of the results
            result: Any = made[user.args[1]]  # type: ignore[index]
            user.replace_all_uses_with(known[result])
            graph.erase_node(user)
    graph.erase_node(node)


def _mode(graph: fx.Graph) -> Any:
    values = (n.meta.get("val") for n in graph.find_nodes(op="placeholder"))
    return next(v.fake_mode for v in values if isinstance(v, Tensor))  # type: ignore[attr-defined]
