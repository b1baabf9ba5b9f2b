"""What a pipeline would divide of a step: states, what is kept at the turn, and the rest."""

from __future__ import annotations

from planner.graphs import Kind
from planner.sharding.pricing import Planned
from planner.solvers.model.order_from_kept import turning_point
from planner.textbook.pipeline import OneStage


def one_stage(planned: Planned) -> OneStage:
    """Return what a rank holds of a step of which stages of a pipeline would each have a part.

    Args:
        planned: without a pipeline, whether it fits or not.
    """
    graph, order = planned.graph, planned.schedule.order
    turn = turning_point(graph)
    start = next(i for i, op in enumerate(order) if op >= turn)
    made = {v for op in order[:start] for v in graph.ops[op].outputs}
    again, read = set[int](), set[int]()
    for op in order[start:]:
        read.update(v for v in graph.ops[op].inputs if v not in again)
        again.update(graph.ops[op].outputs)
    kept = sum(
        graph.values[v].size_bytes for v in made & read if graph.values[v].kind is not Kind.GATHERED
    )
    states = graph.resident_bytes
    return OneStage(states, kept, max(0, planned.peak_bytes - states - kept))
