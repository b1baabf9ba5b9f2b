"""Chen et al. (arXiv 1604.06174), algorithm 3: start a new segment when the last one is full.

A segment is full when the values it made weigh more than a given number of bytes; that number is
swept. A checkpoint is everything that crosses its position, as in ``chen_sqrt``.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.sweep import cheapest
from planner.solvers.model.forward_cuts import checkpoint_orders, crossing_bytes
from planner.solvers.model.order_from_kept import turning_point
from planner.solvers.tuning import CHEN_FILLING_RATIO, CHEN_FILLINGS


@register("chen_greedy")
def chen_greedy(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Sweep the bytes a segment may hold, from all of the forward pass down to nearly nothing.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Phase, Value
    >>> ops = (Op("f", "f", (), (0,), 1.0), Op("loss", "g", (0,), (1,), 1.0),
    ...        Op("b", "b", (0, 1), (2,), 1.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xlg"))
    >>> chen_greedy(g, 3, Limits()).status.name
    'FEASIBLE'
    """
    return cheapest(
        graph, budget_bytes, orders(graph), family="chen_greedy", seconds=limits.seconds
    )


def orders(graph: Graph) -> Iterator[list[int]]:
    """Yield the orders of the family, whatever the budget."""
    yield list(range(len(graph.ops)))
    turn = turning_point(graph)
    made = [sum(graph.values[v].size_bytes for v in op.outputs) for op in graph.ops[:turn]]
    width = crossing_bytes(graph, turn)
    seen = set[tuple[int, ...]]()
    for k in range(CHEN_FILLINGS):
        positions = _positions(made, width, sum(made) * CHEN_FILLING_RATIO**k)
        if positions not in seen:
            seen.add(positions)
            yield from checkpoint_orders(graph, turn, positions)


def _positions(made: list[int], width: list[int], full: float) -> tuple[int, ...]:
    """Walk the forward pass; once a segment is full, end it at the next local narrowing."""
    positions, held = list[int](), 0
    for index, size in enumerate(made[:-1]):
        held += size
        here, after = width[index + 1], width[index + 2]
        if held > full and here <= after:
            positions.append(index + 1)
            held = 0
    return tuple(positions)
