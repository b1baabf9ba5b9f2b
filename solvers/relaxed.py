"""Large graphs: relaxations of the master for the bound, their roundings for the plan.

Adds cuts where the rounded plan overshoots, and once no cut helps aims lower than the budget until
the plan fits. A relaxation's rounding is all but a plan: one memory row a cut leaves few values
fractional. Ops that look alike share columns, so that depth costs next to nothing. Knows nothing of
integer search.
"""

from __future__ import annotations

import time

from solvers.build import order_from_plan
from solvers.master import MasterResult, solve_master
from solvers.overshoot import overshoots
from solvers.problem import held_bytes
from solvers.search import Search

ROUNDS = 8
"""How often cuts are added."""
AIMS = 6
"""How many aims below the budget are tried."""
SHARED = 1500
"""Above so many ops those that look alike share columns; up to there it would save nothing."""


def run_relaxed(search: Search, *, target: float, deadline: float, seed: int = 0) -> None:
    """Raise the bound and lower the cost until they meet within a target or rounds run out."""
    problem = search.problem
    held = held_bytes(problem, range(problem.n))
    if held.max(initial=0) <= search.budget:
        search.offer(range(problem.n))
        return
    cuts = [int(held.argmax())]
    for _ in range(ROUNDS):
        result = _solve(search, search.budget, cuts, deadline, seed)
        search.raise_bound(result.bound)
        if result.plan is None:
            return
        order = order_from_plan(problem, result.plan)
        search.offer(order)
        fresh = overshoots(problem, order, search.budget, cuts)
        if search.gap <= target or not fresh or time.monotonic() > deadline:
            break
        cuts = sorted({*cuts, *fresh})
    _aim(search, cuts, target, deadline, seed)


def _aim(search: Search, cuts: list[int], target: float, deadline: float, seed: int) -> None:
    """Plan for less than the budget, closing in on the most that still fits after rounding."""
    problem = search.problem
    low, high, aim = 0, search.budget, search.budget
    for _ in range(AIMS):
        if search.gap <= target or time.monotonic() > deadline:
            return
        plan = _solve(search, aim, cuts, deadline, seed).plan
        if plan is None:
            high = aim
            aim = (low + high) // 2
            continue
        order = order_from_plan(problem, plan)
        peak = int(held_bytes(problem, order).max())
        search.offer(order)
        if peak <= search.budget:
            low = aim
        else:
            high = aim
        step = aim - (peak - search.budget)
        aim = step if low < step < high else (low + high) // 2
    return


def _solve(
    search: Search, budget: int, cuts: list[int], deadline: float, seed: int
) -> MasterResult:
    shared = search.problem.n > SHARED
    seconds = deadline - time.monotonic()
    return solve_master(
        search.problem, budget, cuts, relax=True, shared=shared, seconds=seconds, seed=seed
    )
