"""Where the seconds of a step go."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graphs import Graph, Phase, Schedule


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the seconds of a step go; ``communication`` is what compute does not hide.

    ``recomputation`` is everything that runs again, gathering included.
    """

    compute: float
    communication: float
    recomputation: float
    optimizer: float


def spent(graph: Graph, schedule: Schedule | None = None) -> Spent:
    """Split the seconds of a schedule, or of every op once.

    >>> from planner.graphs import Op, Value, schedule_from_order
    >>> ops = (Op("f", "f", (), (0,), 2.0), Op("b", "f", (0,), (1,), 3.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, (Value("x", 1), Value("y", 1)))
    >>> spent(g, schedule_from_order(g, [0, 0, 1]))
    Spent(compute=5.0, communication=0.0, recomputation=2.0, optimizer=0.0)
    """
    parts = dict.fromkeys(Phase, 0.0)
    for op in graph.ops:
        parts[op.phase] += op.seconds
    again = 0.0
    if schedule is not None:
        again = sum(graph.ops[i].seconds for i in schedule.order) - graph.seconds
    compute = parts[Phase.FORWARD] + parts[Phase.BACKWARD]
    return Spent(compute, parts[Phase.COMMUNICATION], max(0.0, again), parts[Phase.OPTIMIZER])
