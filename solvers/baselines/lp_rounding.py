"""Checkmate's approximation: relax its integer program, round what to keep, recompute the rest.

The two phases of arXiv 1910.02653: the fractional ``S`` is rounded, by thresholds and at random,
and the least recomputation that such an ``S`` needs follows. As there, the relaxation aims below
the budget, because rounding oversteps; the aim is swept. The program has a column for every op in
every stage, so a graph of more than ``ROUNDING_MOST_OPS`` ops is merged to about that size first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pulp

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, floor_bytes, register
from planner.solvers.baselines.merge_runs import merge_runs
from planner.solvers.baselines.sweep import cheapest
from planner.solvers.exact.checkmate import build
from planner.solvers.model.order_from_kept import order_from_stages, without_unread
from planner.solvers.tuning import (
    ROUNDING_AIMS,
    ROUNDING_DRAWS,
    ROUNDING_MOST_OPS,
    ROUNDING_THRESHOLDS,
)


@register("lp_rounding")
def lp_rounding(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Round the relaxation at several aims and thresholds.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (0,), (2,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4), Value("c", 1)))
    >>> lp_rounding(g, 6, Limits()).schedule.order
    (0, 1, 0, 2)
    """
    orders = _orders(graph, budget_bytes, limits)
    return cheapest(graph, budget_bytes, orders, family="lp_rounding")


def _orders(graph: Graph, budget_bytes: int, limits: Limits) -> Iterator[list[int]]:
    deadline = time.monotonic() + limits.seconds
    small = merge_runs(graph, min(ROUNDING_MOST_OPS, len(graph.ops)))
    yield list(range(len(graph.ops)))
    least = floor_bytes(small.graph)
    for aim in ROUNDING_AIMS:
        if (left := deadline - time.monotonic()) <= 0 or budget_bytes < least:
            return
        target = int(least + aim * (budget_bytes - least))
        for kept in _roundings(small.graph, target, limits, left):
            order = small.expand(order_from_stages(small.graph, kept))
            yield without_unread(graph, order)


def _roundings(
    graph: Graph, budget_bytes: int, limits: Limits, seconds: float
) -> Iterator[list[set[int]]]:
    """Yield for each op the values to hold when its stage begins."""
    program = build(graph, budget_bytes, relax=True)
    program.problem.solve(pulp.HiGHS(msg=False, mip=False, timeLimit=seconds, threads=1))
    if program.problem.sol_status != pulp.LpSolutionOptimal:
        return
    keep = program.keep_fractions()
    for threshold in ROUNDING_THRESHOLDS:
        yield [{v for v, s in stage.items() if s > threshold} for stage in keep]
    rng = random.Random(limits.seed)
    for _ in range(ROUNDING_DRAWS):
        draw = {v: rng.random() for v in range(len(graph.values))}
        yield [{v for v, s in stage.items() if s > draw[v]} for stage in keep]
