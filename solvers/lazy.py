"""Cuts and bursts added lazily: masters, relaxed and then integer, and what their plans lack.

Adds a cut where a plan's first runs overshoot and a burst where its repeated runs do, until bound
and cost meet or nothing moves. Knows nothing of baselines and of reordering.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

from solvers.base import Limits
from solvers.build import order_from_plan
from solvers.master import Burst, solve_master
from solvers.overshoot import bursts, overshoots
from solvers.problem import held_bytes
from solvers.search import Search

ROUNDS = 12
RELAXED = 2
"""The first rounds, in which a graph of at most ``LARGE`` ops is only relaxed to find its cuts."""
AIMS = (0.98, 0.96, 0.94, 0.92)
"""Parts of the budget that plans are made for in those rounds; never the bound."""
STALLS = 2
"""After so many rounds in a row that move neither bound nor cost, cuts are left alone."""
WORK = 400_000
"""What one integer master may cost: see ``solve_master``; a few seconds."""
SMALL_WORK = 2_000_000
"""The same for a graph of at most ``LARGE`` ops, which often is solved to the end."""
LAST_EFFORT = 4
"""How much more the last one may cost there, once its plans overshoot nowhere."""
FINE = 1e-4
"""The gap worth more rounds even when the caller would take a wider one, on 1,000 ops or fewer."""
LARGE = 500
"""Above so many ops a gap that the caller accepts is not narrowed by another round of cuts."""


def fine_target(search: Search, limits: Limits) -> float:
    """Return the gap, as a fraction of the step, at which to stop."""
    return min(limits.gap, FINE * max(1.0, search.problem.n / 1000))


def run_cuts(search: Search, limits: Limits) -> None:
    """Alternate master and repair, with more cuts each round, until bound and cost meet."""
    problem, deadline = search.problem, time.monotonic() + limits.seconds
    search.offer(range(problem.n))
    target, stalls = fine_target(search, limits), 0
    cuts = [int(held_bytes(problem, range(problem.n)).argmax())] if problem.n else []
    again: set[Burst] = set()
    small = problem.n <= LARGE
    work = SMALL_WORK if small else WORK
    for turn in range(ROUNDS):
        before, order = (search.bound, search.extra), None
        early = small and turn < RELAXED
        for relax in (True,) if early else (True, False):
            if search.gap <= target or search.bound == math.inf:
                return
            result = solve_master(
                problem,
                search.budget,
                cuts,
                bursts=again,
                relax=relax,
                gap=target * search.base / 2,
                seconds=deadline - time.monotonic(),
                work=work,
                dive=not small,
                seed=limits.seed,
            )
            search.raise_bound(result.bound)
            if result.plan is not None:
                order = order_from_plan(problem, result.plan)
                search.offer(order)
        if early and search.gap > target:
            _squeeze(search, cuts, again, deadline)
        stalled = (search.bound, search.extra) == before and not early
        stalls = stalls + 1 if stalled else 0
        fresh, runs = _next(search, order, cuts, again)
        over = time.monotonic() > deadline or (search.gap <= limits.gap and not small)
        if over or stalls == STALLS:
            return
        if not (fresh or runs or early):
            if not small or work > SMALL_WORK or search.gap <= limits.gap:
                return
            work *= LAST_EFFORT
        cuts, again = sorted({*cuts, *fresh}), again | runs


def _squeeze(
    search: Search, cuts: Sequence[int], again: Collection[Burst], deadline: float
) -> None:
    """Offer the plans of smaller budgets: what a plan overshoots, it leaves free there."""
    for aim in AIMS:
        budget, left = int(aim * search.budget), deadline - time.monotonic()
        plan = solve_master(
            search.problem, budget, cuts, bursts=again, relax=True, seconds=left
        ).plan
        if plan is None:
            return
        search.offer(order_from_plan(search.problem, plan))


def _next(
    search: Search, order: Sequence[int] | None, cuts: Sequence[int], again: set[Burst]
) -> tuple[list[int], set[Burst]]:
    """Return the cuts and bursts to add, where an order overshoots."""
    if order is None:
        return [], set()
    problem, budget = search.problem, search.budget
    if problem.n > LARGE:
        return overshoots(problem, order, budget, cuts), set()
    fresh = overshoots(problem, order, budget, cuts, repeated=False)
    runs = set(bursts(problem, order, budget, cuts)) - again
    return fresh or ([] if runs else overshoots(problem, order, budget, cuts)), runs
