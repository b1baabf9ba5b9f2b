"""Time cuts and bursts, added where plans lack them: masters relaxed and then integer.

Adds a cut where a plan's first runs overshoot and a burst where its repeated runs do, until bound
and cost meet or nothing moves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

from planner.solvers.api import Limits
from planner.solvers.model.master import MasterResult, branch_master, solve_master
from planner.solvers.model.master_program import Burst
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.model.overshoot import bursts, overshoots
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import (
    ANY_GAP,
    BRANCH_SHARE,
    BRANCH_WORK,
    BRANCHED_ON,
    CLOSE_AIMS,
    FINE_GAP,
    FINE_OPS,
    FIRST_WORK,
    INTEGER_ROUNDS,
    LARGE_OPS,
    MOST_BRANCHED,
    MOST_WORK,
    PATH_ROUNDS,
    PROVING_WORK,
    RELAXED_ROUNDS,
    TIGHT_GAIN,
    TIGHT_PATIENCE,
    TIGHT_ROUNDS,
    WORK_GROWTH,
    WORTH_BRANCHING_GAP,
)


def fine_target(search: Search, limits: Limits) -> float:
    """Return the gap, as a fraction of the step, at which to stop."""
    if limits.gap >= ANY_GAP:
        return limits.gap
    return min(limits.gap, FINE_GAP * max(1.0, search.problem.n / FINE_OPS))


def run_cuts(
    search: Search,
    limits: Limits,
    cuts: Sequence[int] = (),
    *,
    most_work: int = MOST_WORK,
    tight: bool = True,
) -> CutRun:
    """Raise the bound and lower the cost with masters at more and more cuts until they meet.

    Returns the run, whose cuts and bursts others may go on from. On large graphs that have a plan
    the bound is raised by branching, where that gets on, and integer masters have what is left.

    Args:
        search: what is known; it takes in what is found.
        limits: when to stop.
        cuts: the ops at whose first runs the windows begin.
        most_work: what the last integer master may cost.
        tight: whether rows along paths are worth their time, which raise the bound alone.
    """
    search.offer(range(search.problem.n))
    run = CutRun(search, limits, cuts)
    run.relaxations()
    if tight:
        run.tightened()
        if search.problem.n > LARGE_OPS and search.order is not None:
            run.branched()
    run.integers(most_work)
    return run


def prove(search: Search, limits: Limits, cuts: Sequence[int] = ()) -> None:
    """Raise the bound as far as relaxations and branching do, with all the time there is.

    Args:
        search: what is known; it takes in what is found.
        limits: of which the gap and the seed count.
        cuts: the ops at whose first runs the windows begin.
    """
    run = CutRun(search, limits.until(search.deadline), cuts)
    run.relaxations()
    run.tightened()
    run.branched(worth=math.inf, share=1.0, work=PROVING_WORK)


class CutRun:
    """Cuts and bursts, and how hard to try."""

    def __init__(self, search: Search, limits: Limits, cuts: Sequence[int] = ()) -> None:
        problem = search.problem
        self.search, self.limits = search, limits
        self.deadline = time.monotonic() + limits.seconds
        self.target = fine_target(search, limits) if problem.n <= LARGE_OPS else limits.gap
        self.cuts = list(cuts) or _turn(problem)
        self.again: set[Burst] = set()
        self.tightest: tuple[frozenset[int], frozenset[Burst]] | None = None

    @property
    def done(self) -> bool:
        """Say whether the target is met, nothing fits, or the time is over."""
        search = self.search
        met = search.gap <= self.target or search.bound == math.inf
        return met or search.over(self.deadline)

    def relaxations(self) -> None:
        """Find cuts and bursts with relaxed masters, also for less than the budget."""
        for _ in range(RELAXED_ROUNDS):
            if self.done:
                return
            order = self._solve(self.search.budget, relax=True)
            for aim in CLOSE_AIMS if self.search.problem.n <= LARGE_OPS else ():
                if self.done or self._solve(int(aim * self.search.budget), relax=True) is None:
                    break
            if not self.add(order):
                break

    def tightened(self) -> None:
        """Relax masters with rows along paths: the bound is theirs, mostly.

        Each goes on with the cuts and bursts that counted in the proof before and with new ones:
        the others cost time and prove nothing.
        """
        cuts, again, idle = list(self.cuts), set(self.again), 0
        for _ in range(TIGHT_ROUNDS):
            if self.done or idle == TIGHT_PATIENCE:
                return
            before = self.search.bound
            result = self._master(self.search.budget, cuts, again, relax=True, paths=True)
            if self.search.bound > before or self.tightest is None:
                self.tightest = result.binding
            gained = self.search.bound - before > TIGHT_GAIN * self.search.base
            idle = 0 if gained else idle + 1
            order = self._offered(result)
            cuts, again = sorted(result.binding[0]), set(result.binding[1])
            fresh, runs = self._lacking(order, cuts, again)
            if not fresh and not runs:
                return
            self.cuts, self.again = sorted({*self.cuts, *fresh}), self.again | runs
            cuts, again = sorted({*cuts, *fresh}), again | runs

    def branched(
        self,
        *,
        worth: float = WORTH_BRANCHING_GAP,
        share: float = BRANCH_SHARE,
        work: float = BRANCH_WORK,
    ) -> None:
        """Branch on what is held at the cuts that count where a relaxation proved most.

        Integer masters keep their seconds where that did not get on, and have what is left of them
        where it did.

        Args:
            worth: the gap up to which it is tried.
            share: the part of the seconds left that it may take.
            work: what it may cost, in the unit of ``branch_master``.
        """
        search, now = self.search, time.monotonic()
        if not self.target < search.gap <= worth or self.tightest is None:
            return
        cuts, again = self.tightest
        if len(cuts) * search.problem.n > MOST_BRANCHED:
            return
        before, until = search.gap, now + share * max(0.0, search.deadline - now)
        result = branch_master(
            search.problem,
            search.budget,
            sorted(cuts),
            bursts=again,
            enough=search.extra - self.target * search.base / 2,
            work=work,
            seconds=until - now,
            seed=self.limits.seed,
        )
        search.over(until)  # notes that it was cut off there
        search.raise_bound(result.bound)
        if search.gap > (1 - BRANCHED_ON) * before:
            self.deadline += time.monotonic() - now
        self._offered(result)

    def integers(self, most_work: int) -> None:
        """Solve integer masters, with more cuts or bursts each time, or more effort."""
        work, paths = min(FIRST_WORK, most_work), self.search.problem.n <= LARGE_OPS
        for _ in range(INTEGER_ROUNDS):
            if self.done:
                return
            order = self._solve(self.search.budget, work=work, paths=paths)
            if not self.add(order):
                if self.done or work >= most_work or self.search.gap <= self.limits.gap:
                    return
                work *= WORK_GROWTH

    def _solve(
        self, budget: int, *, relax: bool = False, paths: bool = False, work: int = 0
    ) -> list[int] | None:
        """Solve a master, take its bound and its plan in; return the order of the plan."""
        found = self._master(budget, self.cuts, self.again, relax=relax, paths=paths, work=work)
        return self._offered(found)

    def _master(
        self,
        budget: int,
        cuts: Sequence[int],
        again: Collection[Burst],
        *,
        relax: bool,
        paths: bool = False,
        work: int = 0,
    ) -> MasterResult:
        """Solve a master and take its bound in."""
        search = self.search
        result = solve_master(
            search.problem,
            budget,
            cuts,
            bursts=again,
            relax=relax,
            gap=self.target * search.base / 2,
            seconds=self.deadline - time.monotonic(),
            work=work,
            near=search.order,
            seed=self.limits.seed,
            path_rounds=PATH_ROUNDS if paths else 0,
        )
        search.over(self.deadline)  # notes that it was cut off there
        if budget == search.budget:
            search.raise_bound(result.bound)
        return result

    def _offered(self, result: MasterResult) -> list[int] | None:
        """Return the order of a plan, and take it in."""
        if result.plan is None:
            return None
        order = order_from_plan(self.search.problem, result.plan)
        self.search.offer(order)
        return order

    def add(self, order: Sequence[int] | None) -> bool:
        """Add cuts and bursts where an order overshoots; say whether there were any to add."""
        fresh, runs = self._lacking(order, self.cuts, self.again)
        self.cuts, self.again = sorted({*self.cuts, *fresh}), self.again | runs
        return bool(fresh or runs)

    def _lacking(
        self, order: Sequence[int] | None, cuts: Sequence[int], again: Collection[Burst]
    ) -> tuple[list[int], set[Burst]]:
        """Return cuts and bursts that are not there and where an order overshoots."""
        if order is None:
            return [], set()
        problem, budget = self.search.problem, self.search.budget
        fresh = overshoots(problem, order, budget, cuts, repeated=False)
        runs = set(bursts(problem, order, budget, cuts)) - set(again)
        if not fresh and not runs:
            fresh = overshoots(problem, order, budget, cuts)
        return list(fresh), runs


def _turn(problem: Problem) -> list[int]:
    """Return the op at whose first run the plain step holds most; of no ops, none."""
    return [int(held_bytes(problem, range(problem.n)).argmax())] if problem.n else []
