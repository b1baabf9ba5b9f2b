"""Keep nothing from the forward pass: the other end of the scale from ``plain``.

It is not the least memory possible: what is recomputed once stays until its last use.
"""

from __future__ import annotations

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.sweep import cheapest
from planner.solvers.model.order_from_kept import order_from_kept


@register("recompute_all")
def recompute_all(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Recompute every forward value that the backward pass reads.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Phase, Value
    >>> ops = (Op("f", "f", (), (0,), 1.0), Op("loss", "g", (0,), (1,), 1.0),
    ...        Op("b", "b", (0, 1), (2,), 1.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xlg"))
    >>> recompute_all(g, 9, Limits()).schedule.order
    (0, 1, 0, 1, 2)
    """
    del limits  # nothing to search
    order = order_from_kept(graph, frozenset())
    return cheapest(graph, budget_bytes, [order], family="recompute_all")
