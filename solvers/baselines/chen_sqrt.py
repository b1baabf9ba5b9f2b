"""Chen et al. (arXiv 1604.06174): checkpoints at even distances, sqrt(n) of them in the paper.

The paper treats chains. Here a checkpoint is everything that crosses a position of the forward
pass, and each position moves to the narrowest place nearby, which is the generous reading.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.sweep import cheapest, sizes_up_to
from planner.solvers.model.forward_cuts import checkpoint_orders, narrow_positions
from planner.solvers.model.order_from_kept import turning_point


@register("chen_sqrt")
def chen_sqrt(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Sweep the number of segments: the square root of the length is only the best on average.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Phase, Value
    >>> forward = tuple(Op(f"f{i}", "f", (i,), (i + 1,), 1.0) for i in range(4))
    >>> backward = tuple(Op(f"b{i}", "b", (i - 1, 8 - i), (9 - i,), 1.0, phase=Phase.BACKWARD)
    ...                  for i in (4, 3, 2, 1))
    >>> g = Graph(forward + backward, tuple(Value(f"x{i}", 1) for i in range(9)))
    >>> chen_sqrt(g, 5, Limits()).message
    'chen_sqrt: best of 9 schedules'
    """
    return cheapest(graph, budget_bytes, orders(graph), family="chen_sqrt", seconds=limits.seconds)


def orders(graph: Graph) -> Iterator[list[int]]:
    """Yield the orders of the family, whatever the budget."""
    yield list(range(len(graph.ops)))
    turn = turning_point(graph)
    for segments in sizes_up_to(turn):
        positions = narrow_positions(graph, turn, segments)
        yield from checkpoint_orders(graph, turn, positions)
