"""Bytes that are kept from a forward part to its backward, whatever of it runs again.

What backward reads of forward is there, or made again of what is there. So what is kept cuts all
that backward reads off from what forward began with, and weighs no less than a least cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from planner.graphs import Graph


def kept_for_backward(
    graph: Graph,
    forward: Collection[int],
    backward: Collection[int],
    cost_bytes: Mapping[int, int],
) -> int:
    """Return the least bytes that are kept when a forward part has run and before its backward.

    Args:
        graph: the step.
        forward: the ops of a part; no other makes what they make.
        backward: the ops that read what is kept.
        cost_bytes: of values of which keeping counts; all others are there anyway. What no op of
            ``forward`` makes has to be kept in order to be there.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (0,), (1,)), Op("b", "f", (1,), (2,)), Op("c", "f", (1, 2), (3,)))
    >>> values = tuple(Value(x, size) for x, size in zip("xaby", (2, 8, 4, 1)))
    >>> graph = Graph(ops, values, frozenset({3}))
    >>> kept_for_backward(graph, {0, 1}, {2}, {0: 2, 1: 8, 2: 4})  # both are made again of x
    2
    """
    import networkx as nx  # takes a third of the time to import planner

    needed = {v for op in backward for v in graph.ops[op].inputs if v in cost_bytes}
    net, seen, stack = nx.DiGraph(), set[int](), list(needed)
    net.add_nodes_from(("need", "lost"))
    for v in needed:
        net.add_edge("need", (v, "before"))
    while stack:
        v = stack.pop()
        if v in seen:
            continue
        seen.add(v)
        net.add_edge((v, "before"), (v, "after"), capacity=cost_bytes[v])
        maker = graph.producer[v]
        if maker is None or maker not in forward or not graph.ops[maker].recomputable:
            net.add_edge((v, "after"), "lost")
            continue
        for w in graph.ops[maker].inputs:
            if w in cost_bytes:
                net.add_edge((v, "after"), (w, "before"))
                stack.append(w)
    return int(nx.minimum_cut_value(net, "need", "lost"))
