"""``method="auto"``: the graph's order, or another where leaving it saves much."""

from __future__ import annotations

import math

from planner.graphs import Graph, simulate
from planner.solvers.api import Answer, Limits, deadline_of, register
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.given_order import in_given_order
from planner.solvers.model.precedence import may_reorder
from planner.solvers.reorder import promise, reorder
from planner.solvers.tuning import (
    GIVEN_ORDER_SHARE,
    LARGE_OPS,
    PROMISING_OVERSHOOT,
    TINY_OPS,
    WORTH_REORDERING,
)


@register("auto")
def auto(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget and a bound that meets it within ``limits.gap``.

    First runs keep the graph's order, unless leaving it saves more than ``WORTH_REORDERING``; then
    the answer is that of ``method="reorder"``, whose bound holds for any order.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    if not (limits.reorder and TINY_OPS < len(graph.ops) <= LARGE_OPS and may_reorder(graph)):
        return in_given_order(graph, budget_bytes, limits)
    deadline = deadline_of(limits)
    before, after = promise(graph, budget_bytes, limits.seed)
    limits = limits.until(deadline)
    if before == 0.0 or after > PROMISING_OVERSHOOT * before:
        return in_given_order(graph, budget_bytes, limits)
    least = WORTH_REORDERING * graph.seconds
    if after == 0.0 and quick_bound(graph, budget_bytes) - graph.seconds > least:
        return reorder(graph, budget_bytes, limits)  # no schedule in the given order comes near
    given = in_given_order(graph, budget_bytes, limits.until(deadline, share=GIVEN_ORDER_SHARE))
    if (extra := _extra(graph, given)) <= least:
        return given
    other = reorder(graph, budget_bytes, limits.until(deadline))
    return other if extra - _extra(graph, other) > least else given


def _extra(graph: Graph, answer: Answer) -> float:
    """Return the seconds beyond those of running every op once; ``inf`` if nothing was found."""
    if answer.schedule is None:
        return math.inf
    return simulate(graph, answer.schedule).seconds - graph.seconds
