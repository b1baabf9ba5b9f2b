"""``method="auto"``: the graph's order, or another where leaving it saves much."""

from __future__ import annotations

from collections.abc import Sequence

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, register
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.given_order import in_given_order
from planner.solvers.model.precedence import may_reorder
from planner.solvers.reorder import promise, reorder
from planner.solvers.tuning import LARGE_OPS, PROMISING_OVERSHOOT, TINY_OPS, WORTH_REORDERING


@register("auto")
def auto(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget and a bound that meets it within ``limits.gap``.

    First runs keep the graph's order, unless leaving it saves more than ``WORTH_REORDERING``; then
    the answer is that of ``method="reorder"``, whose bound holds for any order.
    """
    if not (limits.reorder and TINY_OPS < len(graph.ops) <= LARGE_OPS and may_reorder(graph)):
        return in_given_order(graph, budget_bytes, limits)
    least = WORTH_REORDERING * graph.seconds
    before, after = promise(graph, budget_bytes, limits.seed)
    if after > PROMISING_OVERSHOOT * before or before == 0.0:
        return in_given_order(graph, budget_bytes, limits)
    if after == 0.0 and quick_bound(graph, budget_bytes) - graph.seconds > least:
        return reorder(graph, budget_bytes, limits)
    given = in_given_order(graph, budget_bytes, limits)
    if given.order is not None and _extra(graph, given.order) <= least:
        return given
    other = reorder(graph, budget_bytes, limits)
    if other.order is None:
        return given
    saves = given.order is None or _extra(graph, given.order) - _extra(graph, other.order) > least
    return other if saves else given


def _extra(graph: Graph, order: Sequence[int]) -> float:
    return sum(graph.ops[o].seconds for o in order) - graph.seconds
