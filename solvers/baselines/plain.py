"""Keep everything: what a framework does when nobody plans. Exact where it fits."""

from __future__ import annotations

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.sweep import cheapest


@register("plain")
def plain(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Run every op once, in order.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Value
    >>> g = Graph((Op("f", "f", (), (0,), 1.0),), (Value("x", 5),))
    >>> plain(g, 5, Limits()).schedule.order
    (0,)
    """
    del limits  # nothing to search
    return cheapest(graph, budget_bytes, [range(len(graph.ops))], family="plain")
