"""Keeping, recomputing and moving values to the host, in one plan.

What a link carries while the device computes costs nothing, and what is beyond that costs waiting;
so a plan recomputes for a larger budget, and moves what is then too much. Which larger budget is
best is searched for, the person's own and that of plain training among them: so recomputation alone
and moving alone are always candidates. Times and bytes are ``simulate``'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from planner.graphs import Graph, Schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import Limits, Solution, Status, deadline_of, floor_bytes, solve
from planner.solvers.baselines.moved_by_hand import BY_HAND, admitted
from planner.solvers.bounds.with_host import bound_with_host
from planner.solvers.given_order import STOPPED
from planner.solvers.minimum_budget import minimum_budget
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.model.problem import held_bytes
from planner.solvers.search.moved_values import RANKS, Rank, moving
from planner.solvers.search.prune import without_run
from planner.solvers.search.transfers import Moved
from planner.solvers.tuning import (
    HOST_BOUND_SHARE,
    HOST_POLISH_OTHERS,
    HOST_POLISH_SHARE,
    HOST_POLISH_SWEEPS,
    HOST_POLISH_TRIES,
    HOST_REFINEMENTS,
    HOST_TARGETS,
)


@dataclass(frozen=True)
class Offloading:
    """The best solution, and the seconds of what it was compared with, ``None`` where that fails.

    ``recomputing_seconds`` are those of recomputation alone, ``moving_seconds`` of the best found
    that runs every op once. The bound is for every schedule of the three choices whose first runs
    keep the graph's order.
    """

    solution: Solution
    recomputing_seconds: float | None
    moving_seconds: float | None


def solve_with_host(
    graph: Graph,
    budget_bytes: int,
    tier: HostTier,
    *,
    method: str = "auto",
    limits: Limits | None = None,
    alone: Solution | None = None,
    tightest: Schedule | None = None,
    larger: Sequence[tuple[int, Schedule]] = (),
) -> Offloading:
    """Find a schedule within the budget that may move values to the host, too.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold on the device.
        tier: where values move to, how fast, and how many bytes.
        method: a name of ``SOLVERS``, for what is recomputed.
        limits: when to stop.
        alone: the solution within the budget that moves nothing, if it is known.
        tightest: the schedule that holds least of those that move nothing, if it is known.
        larger: larger budgets, and a schedule known for each, for what is too much in it to be
            moved; without any such budgets are solved for.

    Raises:
        ValueError: an unknown method; the message lists the valid ones.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 3.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 5.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> found = solve_with_host(g, 3, HostTier(1.0, 1.0))
    >>> found.recomputing_seconds - g.seconds, found.moving_seconds - g.seconds
    (3.0, 1.0)
    """
    limits = limits or Limits()
    search = _Search(HostProblem(graph, budget_bytes, tier), method, limits, tightest)
    first = alone or solve(
        graph, budget_bytes, method=method, limits=limits.of_a_correction(limits.seconds / 3)
    )
    if first.schedule is not None and first.schedule.is_plain and not first.reordered:
        return Offloading(first, graph.seconds, None)
    if floor_bytes(graph) > budget_bytes:
        return Offloading(first, None, None)
    recomputing = None if first.schedule is None else search.take_schedule(first.schedule)
    hand = search.by_hand()
    unrepeated = search.move(range(len(graph.ops)))
    search.run(larger, hand)
    return Offloading(
        search.solution(first),
        recomputing,
        None if unrepeated is None else unrepeated.trace.seconds,
    )


class _Search:
    """The best schedule so far, and how long there is to look for better ones."""

    def __init__(
        self, problem: HostProblem, method: str, limits: Limits, tightest: Schedule | None
    ) -> None:
        self.problem, self.graph, self.budget = problem, problem.graph, problem.budget_bytes
        self.method, self.limits, self.tightest = method, limits, tightest
        held = held_bytes(problem.flat, range(problem.flat.n))
        self.plain_peak = int(held.max(initial=0))
        self.deadline = deadline_of(limits)
        self.until = self.deadline - HOST_BOUND_SHARE * limits.seconds
        self.stopped = False
        self.best: Schedule | None = None
        self.order: Sequence[int] = ()
        self.seconds = math.inf
        self.at: dict[int, float] = {}  # the budget that recomputation was for -> seconds
        self.made: dict[tuple[int, ...], float] = {}  # an order for a larger budget -> seconds

    @property
    def left_seconds(self) -> float:
        return self.until - time.monotonic()

    def over(self) -> bool:
        """Say whether the time is over, and note it if so."""
        late = self.left_seconds < 0
        self.stopped |= late
        return late

    def take_schedule(self, schedule: Schedule) -> float:
        """Take a schedule that moves nothing; return its seconds."""
        seconds = simulate(self.graph, schedule).seconds
        self._offer(schedule, schedule.order, seconds)
        self.at[self.budget] = seconds
        return seconds

    def _offer(self, schedule: Schedule, order: Sequence[int], seconds: float) -> None:
        if seconds < self.seconds - 1e-12:
            self.best, self.order, self.seconds = schedule, order, seconds

    def move(
        self, order: Sequence[int], ranks: Sequence[Rank] = RANKS, *, below: float = math.inf
    ) -> Moved | None:
        """Move what is too much in an order, and take the schedule if it is the best.

        Args:
            order: the ops to run, repetitions included.
            ranks: by which what moves is chosen.
            below: seconds; of no interest is what takes as long.
        """
        made = moving(self.problem, order, ranks, deadline=self.until, below=below)
        if made is not None:
            self._offer(made.schedule, made.order, made.trace.seconds)
        return made

    def by_hand(self) -> list[tuple[float, Schedule]]:
        """Return what people do without a plan and what it takes, where it fits.

        It is looked for early: a plan is to be no slower even where the time is soon over.
        """
        found: list[tuple[float, Schedule]] = []
        for family in BY_HAND:
            if not self.over():
                made = admitted(self.graph, family, self.problem.tier)
                found += [(s, schedule) for peak, s, schedule in made if peak <= self.budget]
        return found

    def run(
        self, larger: Sequence[tuple[int, Schedule]], hand: Sequence[tuple[float, Schedule]]
    ) -> None:
        """Search for the budget that recomputation is best for, then give up single runs.

        Runs are given up of the best order, and of that which moves nothing, since what it
        recomputes need not be what is then best to recompute; of the next best in what time is
        left then.

        Args:
            larger: larger budgets, and a schedule known for each.
            hand: what people do without a plan, each with its seconds.
        """
        low = max(self.budget, self._least())
        alone, until = self.order, self.until
        self.until -= HOST_POLISH_SHARE * max(0.0, self.left_seconds)
        span = self.plain_peak - low
        for target, schedule in larger:
            if not self.over():
                self._moved_for(target, schedule)
        if not larger:
            self._solve_for(low + span * k // HOST_TARGETS for k in range(HOST_TARGETS))
        for _ in range(HOST_REFINEMENTS):
            self._solve_for(self._beside_best())
        for seconds, schedule in hand:
            self._offer(schedule, schedule.order, seconds)
        starts = dict.fromkeys(tuple(order) for order in (self.order, alone) if order)
        others = sorted(self.made.keys() - starts.keys(), key=lambda o: (self.made[o], o))
        for k, order in enumerate([*starts, *others[:HOST_POLISH_OTHERS]]):
            left = max(0.0, until - time.monotonic())
            self.until = time.monotonic() + left / max(1, len(starts) - k)
            self._polish(order)

    def _least(self) -> int:
        """Return a budget that recomputation alone is known to fit, if this one is not."""
        if self.best is not None and not self.best.moves:
            return self.budget
        if (tightest := self.tightest) is None:
            limits = self.limits.of_a_correction(self.left_seconds / 2)
            tightest = minimum_budget(self.graph, limits=limits, thorough=False).schedule
        self.move(tightest.order)
        return simulate(self.graph, tightest).peak_bytes

    def _solve_for(self, targets: Iterable[int]) -> None:
        for target in targets:
            if target in self.at or self.over():
                continue
            limits = replace(self.limits.of_a_correction(self.left_seconds), reorder=False)
            found = solve(self.graph, target, method=self.method, limits=limits)
            self._moved_for(target, found.schedule)

    def _moved_for(self, target: int, schedule: Schedule | None) -> None:
        """Move what is too much in a schedule for a larger budget."""
        made = None if schedule is None else self.move(schedule.order)
        seconds = math.inf if made is None else made.trace.seconds
        if made is not None:
            self.made[made.order] = seconds
        self.at[target] = min(seconds, self.at.get(target, math.inf))

    def _beside_best(self) -> list[int]:
        """Return budgets half way between the best one and its neighbours."""
        known = sorted({*self.at, self.plain_peak})
        if not self.at:
            return []
        k = known.index(min(self.at, key=lambda b: (self.at[b], b)))
        beside = [*known[max(0, k - 1) : k], *known[k + 1 : k + 2]]
        return [(known[k] + other) // 2 for other in beside]

    def _polish(self, order: Sequence[int]) -> None:
        """Give up single repeated runs, dearest first, where moving more instead is quicker.

        A run that was refused is tried once more when others have been given up.
        """
        tries, before, refused = HOST_POLISH_TRIES, math.inf, set[tuple[int, int]]()
        if (made := self.move(order)) is not None:
            order, before = made.order, made.trace.seconds
        for _ in range(HOST_POLISH_SWEEPS):
            refused.clear()
            better = True
            while better:
                better = False
                for position, key in _repeated(self.problem.flat.seconds, order):
                    if key in refused:
                        continue
                    if not tries or self.over():
                        return
                    tries -= 1
                    refused.add(key)
                    without = without_run(self.problem.flat, order, position)
                    made = self.move(without, RANKS[:1], below=before - 1e-12)
                    if made is not None:
                        order, before, better = made.order, made.trace.seconds, True
                        break

    def solution(self, first: Solution) -> Solution:
        """Return the best schedule with what is proved of it."""
        if self.best is None:
            return Solution(Status.UNKNOWN, None, self.graph.seconds, first.message)
        seconds, base = self.seconds, self.graph.seconds
        bound = base
        if not self.best.is_reordered:
            left = max(0.0, self.deadline - time.monotonic())
            bound += bound_with_host(
                self.problem,
                seconds - base,
                seconds=min(left, max(1.0, HOST_BOUND_SHARE * self.limits.seconds)),
            )
        close = seconds - bound <= self.limits.gap * base
        status = Status.OPTIMAL if close else Status.FEASIBLE
        message = STOPPED if self.stopped and status is not Status.OPTIMAL else ""
        return Solution(status, self.best, min(bound, seconds), message)


def _repeated(seconds: Sequence[float], order: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """Return where ops run again, dearest first, each with the op and which of its runs it is."""
    runs: dict[int, int] = {}
    found: list[tuple[int, tuple[int, int]]] = []
    for i, op in enumerate(order):
        runs[op] = runs.get(op, 0) + 1
        if runs[op] > 1:
            found.append((i, (op, runs[op])))
    return sorted(found, key=lambda item: (-seconds[order[item[0]]], item[0]))
