"""A plan for a larger budget, walked down: made to fit a little less at a time.

Where relaxations of a tight budget round to nothing that fits, or to what recomputes nearly all,
those of a budget a few percent larger often round well, and what little such a plan holds too much
is given up more cheaply step by step than at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import WALK_STEP, WALKS_FROM


def walk_down(search: Search, plan: Callable[[Search], object]) -> None:
    """Offer what plans for larger budgets become; their bounds hold for the smaller one, too.

    Args:
        search: what is known; it takes in what is found.
        plan: fills in a search of a larger budget.
    """
    for times in WALKS_FROM:
        if search.over():
            return
        larger = Search(search.problem, int(times * search.budget), deadline=search.deadline)
        plan(larger)
        if larger.bound < math.inf:
            search.raise_bound(larger.bound)
        if larger.order is not None:
            _walk(search, larger.order, larger.budget)


def _walk(search: Search, order: Sequence[int], budget: int) -> None:
    """Make an order that fits a budget fit less and less while it is cheaper than the best."""
    step = max(1, int(WALK_STEP * search.budget))
    while budget > search.budget and not search.over():
        budget = max(search.budget, budget - step)
        near = Search(search.problem, budget, deadline=search.deadline)
        near.offer(order)
        if near.order is None or near.extra >= search.extra:
            return
        order = near.order
    search.offer(order)
