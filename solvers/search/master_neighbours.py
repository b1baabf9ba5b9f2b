"""Better plans near the best one: masters in which little is free, again and again.

Large neighbourhood search: two stretches of ops are drawn at random, of which everything is free,
beside what plan and relaxation do not agree on. Where such a master is solved to its end and
nothing is better, stretches are made longer; where it is not, shorter. Effort is counted, not
timed.
"""

from __future__ import annotations

import random
import time

from planner.solvers.model.near_plans import NearPlans
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.search.time_cuts import CutRun
from planner.solvers.tuning import (
    NEAR_GAIN,
    NEAR_GROWTH,
    NEAR_IDLE,
    NEAR_LENGTH,
    NEAR_ROUNDS,
    NEAR_WORK,
)


def improve_near(run: CutRun, *, target: float, share: float, seed: int) -> None:
    """Improve the best order of a search by masters near it.

    Args:
        run: of masters at cuts, with its search; both take in what is found.
        target: the gap, as a fraction of the step, at which to stop.
        share: the part of the seconds left that this may take.
        seed: of every random choice.
    """
    search, draw = run.search, random.Random(seed)
    begun = time.monotonic()
    until = begun + share * (search.deadline - begun)
    length, idle, near = NEAR_LENGTH, 0, None
    for turn in range(NEAR_ROUNDS):
        if search.order is None or search.gap <= target or idle >= NEAR_IDLE or search.over(until):
            return
        if near is None:
            left = until - time.monotonic()
            near = NearPlans(search.problem, search.budget, run.cuts, run.again, seconds=left)
        begins = [draw.randrange(near.ops) for _ in range(2 if turn else 0)]
        ops = int(length * near.ops)
        found = near.best(
            search.order,
            {op for begin in begins for op in range(begin, begin + ops)},
            gap=NEAR_GAIN * search.base,
            seconds=until - time.monotonic(),
            work=NEAR_WORK,
            seed=seed,
        )
        length = min(1.0, length * NEAR_GROWTH) if found.closed else length / NEAR_GROWTH
        before, idle = search.extra, idle + 1
        if found.plan is not None:
            order = order_from_plan(search.problem, found.plan)
            search.offer(order)
            if run.add(order):
                near, idle = None, 0
            elif search.extra < before:
                idle = 0
