"""What torch kept for backward, or keeps, though no formula of backward reads it.

A captured graph lets go of a value at its last reader. Autograd keeps what an operator saved until
the operator's backward has run, even if that asks for a shape or a dtype alone:

- the input of a softmax, up to torch 1.10 (github.com/pytorch/pytorch/issues/49600);
- the source of ``index_copy``, also today (``IndexCopyBackward0._saved_source``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from planner.graphs import Graph, Phase

SOFTMAX: Mapping[str, str] = {
    "aten._softmax.default": "aten._softmax_backward_data.default",
    "aten._log_softmax.default": "aten._log_softmax_backward_data.default",
}
INDEX_COPY: Mapping[str, str] = {"aten.index_copy.default": "aten.index_select.default"}


def keeping(graph: Graph, saved: Mapping[str, str]) -> Graph:
    """Return a graph in which what some forward operators read last is kept for their backward.

    Args:
        graph: a step in which each of these operators has one backward, in reverse order.
        saved: by the operator of forward the one of backward.

    Raises:
        ValueError: an operator of forward has no backward of its own.
    """
    extra = dict(pair for one in saved.items() for pair in _pairs(graph, *one))
    ops = tuple(
        replace(op, inputs=tuple(dict.fromkeys((*op.inputs, *extra.get(i, ())))))
        for i, op in enumerate(graph.ops)
    )
    return replace(graph, ops=ops)


def _pairs(graph: Graph, forward: str, backward: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield an op of backward, and what its op of forward read last."""
    one = [i for i, op in enumerate(graph.ops) if op.target == forward]
    other = [
        i for i, op in enumerate(graph.ops) if op.target == backward and op.phase is Phase.BACKWARD
    ]
    if len(one) != len(other):
        raise ValueError(f"{len(one)} {forward} and {len(other)} {backward}: expected as many")
    for ahead, behind in zip(one, reversed(other), strict=True):
        yield behind, graph.ops[ahead].inputs[-1:]
