"""Reorder first, recompute then, ``method="reorder"``: for graphs whose given order is poor.

Looks for an order of first runs that overshoots the budget less, and solves what is left in that
order. The plan runs the same ops on the same data; which orders are allowed is ``freedom``'s to
say. The bound holds for every order (``bounds.any_order``), so that it is below that of the given
order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, Status, deadline_of, register
from planner.solvers.bounds.any_order import bound_any_order
from planner.solvers.given_order import in_given_order
from planner.solvers.model.precedence import freedom, may_reorder, permuted
from planner.solvers.model.problem import flatten
from planner.solvers.search.anneal_order import best_arrangement, overshoot
from planner.solvers.tuning import (
    ANY_ORDER_SHARE,
    ANY_ORDER_WORK,
    LARGE_OPS,
    MOVES_PER_OP,
    QUICK_MOVES_PER_OP,
)


@register("reorder")
def reorder(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget whose first runs may come in another order.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (0,), (2,)),
    ...        Op("d", "f", (1,), (3,)))
    >>> g = Graph(ops, tuple(Value(x, size) for x, size in zip("abcd", (5, 5, 1, 1))))
    >>> found = reorder(g, 6, Limits())
    >>> found.schedule.order, found.bound_seconds
    ((1, 3, 0, 2), 2.0)
    """
    if len(graph.ops) > LARGE_OPS or not may_reorder(graph):
        message = f"reorder: only up to {LARGE_OPS} ops, and none of them communication"
        return Answer(Status.UNKNOWN, None, message=message)
    deadline = deadline_of(limits)
    problem, free = flatten(graph), freedom(graph)
    order = best_arrangement(
        problem, free, budget_bytes, moves=MOVES_PER_OP * problem.n, seed=limits.seed
    )
    within = limits.until(deadline, share=1 - ANY_ORDER_SHARE)
    found = in_given_order(permuted(graph, order), budget_bytes, within)
    limits = limits.until(deadline)
    if found.schedule is None:
        bound = any_order_bound(graph, budget_bytes, math.inf, limits)
        status = Status.INFEASIBLE if math.isinf(bound) else Status.UNKNOWN
        return Answer(status, None, bound, f"reorder: in the best order found, {found.message}")
    made = [order[i] for i in found.schedule.order]
    seconds = problem.order_seconds(made)
    bound = any_order_bound(graph, budget_bytes, seconds, limits)
    proved = seconds <= bound * (1 + limits.gap)
    status = Status.OPTIMAL if proved else Status.FEASIBLE
    message = "; ".join(filter(None, (moved(order), found.message)))
    return Answer.of_order(graph, status, made, bound, message)


def promise(graph: Graph, budget_bytes: int, seed: int) -> tuple[float, float]:
    """Return by how much the given order overshoots, and one quickly found.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold.
        seed: of every random choice.
    """
    problem = flatten(graph)
    before = overshoot(problem, range(problem.n), budget_bytes)
    if before == 0.0:
        return before, before
    order = best_arrangement(
        problem, freedom(graph), budget_bytes, moves=QUICK_MOVES_PER_OP * problem.n, seed=seed
    )
    return before, overshoot(problem, order, budget_bytes)


def moved(order: Sequence[int]) -> str:
    """Say how many ops first run after one that follows them in the graph, and what is proved.

    >>> moved([0, 2, 1, 3])
    'reordered: 1 of 4 ops first runs later than in the model; the bound holds for any order'
    """
    late, latest = 0, -1
    for o in order:
        late, latest = late + (o < latest), max(o, latest)
    if not late:
        return "reorder: the order of the model is kept; the bound holds for any order"
    return (
        f"reordered: {late} of {len(order)} ops first runs later than in the model; "
        "the bound holds for any order"
    )


def any_order_bound(graph: Graph, budget_bytes: int, seconds: float, limits: Limits) -> float:
    """Return seconds that no order saves, without asking where nothing was recomputed.

    Args:
        graph, budget_bytes: what is to run, and within what.
        seconds: what the best schedule known takes.
        limits: whose gap says how close is close enough, and when to stop.

    >>> from planner.graphs import Op, Value
    >>> graph = Graph((Op("a", "f", (), (0,), 1.0),), (Value("a", 3),))
    >>> any_order_bound(graph, 5, 1.0, Limits())
    1.0
    """
    if seconds <= graph.seconds:
        return graph.seconds
    problem, gap = flatten(graph), limits.gap * graph.seconds / 2
    return graph.seconds + bound_any_order(
        problem,
        freedom(graph),
        budget_bytes,
        gap=gap,
        work=ANY_ORDER_WORK,
        seconds=limits.seconds,
    )
