"""The workhorse, ``method="auto"``: coarse stages with lazy time cuts.

Solves the master at few cuts, relaxed and then integer, for a bound and a plan; builds an order,
repairs and prunes it, sees where it overshot, adds cuts there, and goes on until bound and cost
meet. The bound holds for every schedule whose first runs follow the graph's order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from graphs import Graph
from solvers.base import Answer, Limits, Status, register
from solvers.build import order_from_plan
from solvers.master import solve_master
from solvers.problem import flatten, held_bytes
from solvers.search import Search

ROUNDS = 12
FINE = 1e-4
"""The gap worth a few more rounds even when the caller would take a wider one."""


@register("auto")
def auto(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget and a bound that meets it within ``limits.gap``."""
    problem = flatten(graph)
    search = Search(problem, budget_bytes)
    search.offer(range(problem.n))
    if search.gap > 0:
        run_cuts(search, limits)
    if search.order is None:
        if search.bound == math.inf:
            return Answer(Status.INFEASIBLE, None, math.inf, "the master proves that nothing fits")
        return Answer(Status.UNKNOWN, None, search.base + search.bound, "found nothing that fits")
    status = Status.OPTIMAL if search.gap <= max(limits.gap, 2e-6) else Status.FEASIBLE
    return Answer(status, search.order, search.base + min(search.bound, search.extra))


def run_cuts(search: Search, limits: Limits) -> None:
    """Alternate master and repair, with more cuts each round, until bound and cost meet."""
    started, target = time.monotonic(), min(limits.gap, FINE)
    cuts = [int(held_bytes(search.problem, range(search.problem.n)).argmax())]
    for _ in range(ROUNDS):
        for relax in (True, False):
            left = limits.seconds - (time.monotonic() - started)
            if left <= 0:
                return
            result = solve_master(
                search.problem,
                search.budget,
                cuts,
                relax=relax,
                gap=target * search.base / 2,
                seconds=left if relax else left / 4,
                seed=limits.seed,
            )
            search.raise_bound(result.bound)
            if result.plan is None:
                break
            order = order_from_plan(search.problem, result.plan)
            search.offer(order)
            if search.gap <= target:
                return
        if result.bound == math.inf:
            return
        fresh = _overshoots(search, order, cuts)
        if not fresh:
            return
        cuts = sorted({*cuts, *fresh})


def _overshoots(
    search: Search, order: Sequence[int], cuts: Sequence[int], most: int = 3
) -> list[int]:
    """Return the first runs at which an order overshoots most, each a little apart."""
    n, held = search.problem.n, held_bytes(search.problem, order)
    bases = _bases(order, n)
    apart = max(1, n // 100)
    found: list[int] = []
    for i in sorted(np.flatnonzero(held > search.budget).tolist(), key=lambda i: (-held[i], i)):
        t = bases[i]
        if t not in cuts and all(abs(t - u) > apart for u in found):
            found.append(t)
            if len(found) == most:
                break
    return found


def _bases(order: Sequence[int], n: int) -> list[int]:
    """Return for each position the op that it runs first or, if repeated, that first runs next."""
    bases: list[int] = []
    frontier = -1
    for op in order:
        frontier = max(frontier, op)
        bases.append(op if op == frontier else min(frontier + 1, n - 1))
    return bases
