"""Large graphs: relaxations of the master for the bound, their roundings for the plan.

Adds cuts where the rounded plan overshoots. A relaxation's rounding is all but a plan: one memory
row a cut leaves few values fractional. Ops that look alike share columns, so that depth costs next
to nothing. Where cuts do not help, plans for less than the budget are tried, and such as hold what
crosses narrow places of the forward pass, so that recomputing never runs far.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.master import MasterResult, solve_master
from planner.solvers.model.master_points import CutPlan
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.model.overshoot import overshoots
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import (
    ADDING_ROUNDS,
    AIM_ROUNDS,
    FAR_OVERSHOOT,
    MOST_COLUMNS,
    NARROW_NEARBY,
    PINS_THINNED,
    SHARED_ABOVE_OPS,
    START_SHARE,
    STEEPER,
)

Pins = frozenset[int]


def run_relaxed(
    search: Search, *, target: float, enough: float, deadline: float, seed: int = 0
) -> list[int]:
    """Raise the bound and lower the cost until they meet within the target or rounds run out.

    Cuts that alone leave no wider gap than ``enough`` are enough. Returns the cuts.

    Args:
        search: what is known; it takes in what is found.
        target: the gap, as a fraction of the step, at which to stop.
        enough: a gap that is left to others.
        deadline: of ``time.monotonic``.
        seed: of every random choice.
    """
    held = held_bytes(search.problem, range(search.problem.n))
    if held.max(initial=0) <= search.budget:
        search.offer(range(search.problem.n))
        return []
    run = _RelaxedRun(search, held, target, deadline, seed)
    run.add_cuts()
    if search.bound < math.inf and not run.done and search.gap > enough:
        pins = run.choose_pins()
        if pins:
            run.add_cuts(pins)
        run.aim(pins)
    if run.nearest is not None and not run.done and run.excess > 0:
        search.offer(run.nearest)
    if run.nearest is not None and search.order is None:
        search.rescue(run.nearest)
    return run.cuts


class _RelaxedRun:
    """Cuts, and the order that came nearest to fitting."""

    def __init__(
        self, search: Search, held: NDArray[np.int64], target: float, deadline: float, seed: int
    ) -> None:
        self.search, self.turn, self.peak = search, int(held.argmax()), int(held.max())
        self.cuts = [self.turn]
        self.target, self.deadline, self.seed = target, deadline, seed
        self.early = deadline - START_SHARE * max(0.0, deadline - time.monotonic())
        self.nearest: list[int] | None = None
        self.excess: float = math.inf
        self.took = 0.0  # by the last master; the next will take about as long

    @property
    def done(self) -> bool:
        """Say whether the target is met or the time is over."""
        return self.search.gap <= self.target or self.search.over(self.until, needed=self.took)

    @property
    def until(self) -> float:
        """When to stop: earlier while nothing fits, so that time is left for what fits for sure."""
        return self.deadline if self.search.order is not None else self.early

    @property
    def slope(self) -> float:
        """Return about what a plan that overshoots by the whole budget must pay to fit."""
        spared = self.peak - self.search.budget
        return STEEPER * self.search.bound * self.search.budget / spared

    def add_cuts(self, pins: Pins = Pins()) -> None:  # noqa: B008 (immutable)
        """Solve relaxations at more and more cuts, as long as their plans overshoot near them."""
        search = self.search
        for _ in range(ADDING_ROUNDS):
            result = self._solve(search.budget, pins)
            if not pins:
                search.raise_bound(result.bound)
            if result.plan is None:
                return
            order, excess = self._offer(result.plan)
            fresh = overshoots(search.problem, order, search.budget, self.cuts)
            size = (len(self.cuts) + len(fresh)) * search.problem.n
            far = excess > FAR_OVERSHOOT and len(self.cuts) > 1
            if self.done or not fresh or far or size > MOST_COLUMNS:
                return
            self.cuts = sorted({*self.cuts, *fresh})

    def choose_pins(self) -> Pins:
        """Return the pins whose plan is best: cheap, and not far from fitting."""
        best, chosen = math.inf, Pins()
        for pins in (Pins(), *narrow_pins(self.search.problem, self.turn)):
            if self.done:
                break
            result = self._solve(self.search.budget, pins)
            if result.bound >= self.search.extra:  # and more pins cost more
                break
            if result.plan is not None:
                order, excess = self._offer(result.plan)
                cost = self.search.problem.order_seconds(order) + self.slope * max(0.0, excess)
                if cost < best:
                    best, chosen = cost, pins
        return chosen

    def aim(self, pins: Pins) -> None:
        """Plan for less than the budget, closing in on the most that still fits when rounded."""
        low, high, aim = 0, self.search.budget, self.search.budget
        for _ in range(AIM_ROUNDS):
            if self.done:
                return
            plan, excess = self._solve(aim, pins).plan, 0.0
            if plan is not None:
                _, excess = self._offer(plan)
            if plan is not None and excess <= 0:
                low = aim
            else:
                high = aim
            step = aim - int(excess * self.search.budget)
            aim = step if low < step < high else (low + high) // 2

    def _offer(self, plan: CutPlan) -> tuple[list[int], float]:
        """Take the order of a plan in; return it, and the part of the budget it overshoots by."""
        search = self.search
        order = order_from_plan(search.problem, plan)
        excess = int(held_bytes(search.problem, order).max()) / search.budget - 1
        small = search.problem.n <= SHARED_ABOVE_OPS
        if small or excess <= FAR_OVERSHOOT:
            search.offer(order, evict=small)
        if excess < self.excess:
            self.nearest, self.excess = order, excess
        return order, excess

    def _solve(self, budget: int, pins: Pins = Pins()) -> MasterResult:  # noqa: B008 (immutable)
        begin = time.monotonic()
        found = solve_master(
            self.search.problem,
            budget,
            self.cuts,
            relax=True,
            shared=self.search.problem.n > SHARED_ABOVE_OPS,
            pinned=pins,
            seconds=self.until - begin,
            seed=self.seed,
        )
        self.took = time.monotonic() - begin
        self.search.over(self.until)  # notes that it was cut off there
        return found


def narrow_pins(problem: Problem, turn: int) -> list[Pins]:
    """Return what crosses narrow places before an op: a few of them, three times as many, all.

    A place is narrow if no more bytes cross it than any other nearby; what crosses is made before
    and read from there on, before the turn.
    """
    change = np.zeros(turn + 2, dtype=np.int64)
    spans = []
    for v, uses in enumerate(problem.uses):
        if (last := bisect_left(uses, turn)) and problem.maker[v] < turn:
            spans.append((v, problem.maker[v], uses[last - 1]))
            change[problem.maker[v] + 1] += problem.sizes[v]
            change[uses[last - 1] + 1] -= problem.sizes[v]
    crossing = np.cumsum(change)[1 : turn + 1]
    near = NARROW_NEARBY
    least = np.array([crossing[max(0, i - near) : i + near + 1].min() for i in range(turn)])
    places = np.flatnonzero(crossing <= least) + 1
    levels = []
    while len(places) > 1:
        begin, end = (np.searchsorted(places, [s[k] for s in spans], "right") for k in (1, 2))
        levels.append(Pins(spans[i][0] for i in np.flatnonzero(begin < end)))
        places = places[::PINS_THINNED]
    return levels[::-1]
