"""Try a family of orders and answer with its cheapest member that fits.

What every baseline shares: the comparison is fair because each has its size parameter swept and
its peak judged by ``simulate``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

from planner.graphs import Graph, Schedule, schedule_from_order, simulate
from planner.solvers.api import Answer, Status
from planner.solvers.tuning import EVERY_SIZE_UP_TO, SIZE_STEP


def cheapest(
    graph: Graph,
    budget_bytes: int,
    orders: Iterable[Sequence[int]],
    *,
    family: str,
    seconds: float = math.inf,
) -> Answer:
    """Return the cheapest order that fits the budget, or the least peak that the family reached.

    ``UNKNOWN`` if none fits: that one family has no schedule proves nothing about the others.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold.
        orders: the orders to try.
        family: named in the answer.
        seconds: after which no more orders are tried; the answer then says so.

    >>> from planner.graphs import Op, Value
    >>> g = Graph((Op("f", "f", (), (0,), 1.0),), (Value("x", 5),))
    >>> cheapest(g, 5, [[0]], family="demo").schedule.order
    (0,)
    >>> cheapest(g, 4, [[0]], family="demo").message
    'demo: the least peak of the 1 schedules tried is 5 bytes, over the budget of 4'
    """
    deadline, late = time.monotonic() + seconds, ""
    best: Schedule | None = None
    best_seconds, least, tried = math.inf, math.inf, 0
    for order in orders:
        if tried and time.monotonic() > deadline:
            late = "; stopped by the limit in seconds"
            break
        cost = sum(graph.ops[i].seconds for i in order)
        tried += 1
        if cost >= best_seconds:
            continue  # not worth a simulation
        schedule = schedule_from_order(graph, order)
        peak = simulate(graph, schedule).peak_bytes
        least = min(least, peak)
        if peak <= budget_bytes:
            best, best_seconds = schedule, cost
        if best_seconds <= graph.seconds:
            break  # nothing costs less than running every op once
    if best is not None:
        return Answer(Status.FEASIBLE, best, message=f"{family}: best of {tried} schedules{late}")
    if not tried:
        return Answer(Status.UNKNOWN, None, message=f"{family}: has no schedule for this graph")
    message = (
        f"{family}: the least peak of the {tried} schedules tried is {least} bytes, "
        f"over the budget of {budget_bytes}{late}"
    )
    return Answer(Status.UNKNOWN, None, message=message)


def sizes_up_to(largest: int, *, dense: int = EVERY_SIZE_UP_TO) -> list[int]:
    """Return every size up to ``dense``, then steps of an eighth: few sizes, none far from any.

    >>> sizes_up_to(5), len(sizes_up_to(3_000))
    ([1, 2, 3, 4, 5], 72)
    """
    sizes, size = list[int](), 1
    while size < largest:
        sizes.append(size)
        size += 1 if size < dense else size // SIZE_STEP
    return [*sizes, largest] if largest > 0 else sizes
