"""Solving for what a compiler will allocate, which it says of every schedule without running it.

Solve, rewrite the step, ask, take what is too much off the target, and make what was found fit
that, or solve again. The bound stays the one proved for the person's budget. Knows nothing of how
the compiler is asked.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from planner.byte_sizes import format_both
from planner.errors import InfeasibleBudget
from planner.graphs import Graph, Kind, Schedule, Value, plain_schedule, simulate
from planner.graphs.binding import binding
from planner.graphs.capture.fused.other_calls import Calls, with_others
from planner.graphs.capture.training_step import Captured
from planner.graphs.simulate import Trace
from planner.plan.advice import advice, tightest
from planner.request import Request
from planner.running.engines.engine import Settled
from planner.running.engines.several_calls import leanest, solve_for_calls
from planner.solvers import Limits, Solution, Status
from planner.solvers.minimum_budget import proven_floor
from planner.solvers.tightened import tightened

AUTO = "auto"
"""The method that may be any, of which schedules are made to fit; others are asked again."""
EXCESS = "compiler's buffers beyond the plan's"
ROUNDS = 6
CLOSE = 0.985
"""A schedule that fills so much of the budget is not improved any more."""
ENOUGH = 0.01
"""Nor is one that costs so little of the plain step beyond the bound, or beyond what may be found
next: to ask takes seconds.
"""
NEAR = 0.02
"""A schedule that was made to fit a little less, and costs at most so much of the plain step beyond
what is quickly proved, is taken as it is: solving anew takes as long as asking, and seldom finds
another.
"""
FIRST, CORRECTED, LEAST = 0.4, 0.6, 0.4
"""The shares of the seconds in which the first solution and its corrections are to be there, and
what the least budget gets, if none is kept: always as much, so that the one named is found again.
"""
MARGIN = 0.01
"""What is left free for what no compiler says: alignment, buffers of single numbers."""
UNCHECKED = (
    "unchecked: Inductor's kernels were measured on CPUs only; its own count of what they hold on "
    "this device was never compared with a measurement: leave room, and measure the first step"
)


@dataclass(frozen=True)
class Candidate:
    """A schedule, what it costs, the most it holds by itself, and by what the compiler says.

    ``written`` tells what the compiler was asked for.
    """

    schedule: Schedule
    seconds: float
    own_bytes: int
    held_bytes: int
    written: str


@dataclass
class _Search:
    """Schedules that the compiler was asked of; ``begun`` is when, put off by what asking took.

    To ask is to capture: a person's seconds are for solving, and few schedules are asked of.
    """

    captured: Captured
    budget_bytes: int
    request: Request
    begun: float = field(default_factory=time.perf_counter)
    known: list[Candidate] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)

    def limits(self, share: float) -> Limits:
        """Return limits of a share of the seconds."""
        limits = self.request.limits
        return replace(limits, seconds=share * limits.seconds)

    def corrected(self, target_bytes: int) -> Solution:
        """Find a schedule for less than the budget: one that is known made to fit, or a new one.

        Where none can be made to fit, that is near the least, which is not looked for here.
        """
        quick = self._tightened(target_bytes)
        if quick is not None and (quick.schedule is None or quick.status is Status.OPTIMAL):
            return quick
        return self.anew(target_bytes, CORRECTED)

    def anew(self, target_bytes: int, share: float) -> Solution:
        """Solve for less than the budget, in what is left of a share of the seconds."""
        left = self.begun + self.limits(share).seconds - time.perf_counter()
        limits = self.request.limits.of_a_correction(left)
        return self.solve(target_bytes, limits)

    def solve(self, target_bytes: int, limits: Limits) -> Solution:
        """Solve for what all calls of the step hold together."""
        graph, method = self.captured.graph, self.request.method
        found = solve_for_calls(graph, target_bytes, self.calls, method=method, limits=limits)
        self.solutions.append(found)
        return found

    def _tightened(self, target_bytes: int) -> Solution | None:
        """Make what was found for more fit, if it was found in the graph's order and for a call."""
        found = [s.schedule for s in self.solutions if s.schedule is not None]
        in_order = self.request.method == AUTO and not any(s.is_reordered for s in found)
        if not (found and in_order and self.calls.count == 1):
            return None
        limits = replace(self.limits(CORRECTED), gap=NEAR)
        return tightened(self.captured.graph, found, target_bytes, limits)

    @property
    def calls(self) -> Calls:
        """How many of the step wait for their backward passes at once."""
        step = self.captured.compiled
        assert step is not None, "a compiler's step"
        return step.calls

    def own(self, schedule: Schedule) -> Trace:
        """Return what a schedule costs and its values hold."""
        return simulate(with_others(self.captured.graph, schedule, self.calls), schedule)

    def ask(self, schedule: Schedule) -> Candidate:
        """Ask once of each schedule."""
        for asked in self.known:
            if asked.schedule == schedule:
                return asked
        step, start = self.captured.compiled, time.perf_counter()
        assert step is not None, "a compiler's step"
        told, own = step.asked(schedule), self.own(schedule)
        found = Candidate(schedule, own.seconds, own.peak_bytes, told.peak_bytes, told.written)
        self.known.append(found)
        self.begun += time.perf_counter() - start
        return found

    @property
    def best(self) -> Candidate | None:
        """The quickest schedule that keeps within the budget."""
        kept = [a for a in self.known if with_margin(self.captured, a) <= self.budget_bytes]
        return min(kept, key=lambda a: (a.seconds, a.held_bytes), default=None)


def with_margin(captured: Captured, asked: Candidate) -> int:
    """Return the bytes that a schedule is taken to hold: what was said, and a margin of what is
    not there throughout.
    """
    moving = asked.held_bytes - captured.graph.resident_bytes
    return asked.held_bytes + int(MARGIN * max(0, moving))


def as_said(graph: Graph, peak_bytes: int) -> tuple[Graph, int]:
    """Return a plan's graph, and what the compiler said that it holds, without the margin.

    Args:
        graph: of the plan.
        peak_bytes: of the plan.
    """
    own = replace(graph, values=tuple(v for v in graph.values if v.name != EXCESS))
    moving = max(0, peak_bytes - own.resident_bytes)
    return own, own.resident_bytes + math.ceil(moving / (1 + MARGIN))


def settled(captured: Captured, budget_bytes: int, request: Request) -> Settled:
    """Find the quickest schedule that the compiler says keeps within a budget.

    Args:
        captured: a compiler's step.
        budget_bytes: what the step may hold.
        request: by which method, within which limits.

    Raises:
        InfeasibleBudget: none was found; the error has the least budget that was asked for.
    """
    graph, search = captured.graph, _Search(captured, budget_bytes, request)
    first = search.solve(budget_bytes, search.limits(FIRST))
    if first.schedule is not None:
        _correct(search, first)
    if search.best is None:
        _tighten(search)
    if (best := search.best) is None:
        raise _out_of_reach(search, first.message)
    judged = _judged(graph, best, first, request.limits)
    held = with_margin(captured, best)
    less = held if held < best.own_bytes else None  # kernels that run again are fused further
    return Settled(_with_excess(captured, best), judged, remarks(request.hardware.name), less)


def least_known(captured: Captured, request: Request) -> int:
    """Return the bytes of the tightest schedule that the compiler is asked of, or of the plain one.

    Args:
        captured: a compiler's step.
        request: within which limits.
    """
    search = _Search(captured, 0, request)
    search.ask(plain_schedule(captured.graph))
    for schedule in leanest(captured.graph, search.calls, search.limits(LEAST)):
        search.ask(schedule)
    return min(with_margin(captured, asked) for asked in search.known)


def remarks(device: str) -> tuple[str, ...]:
    """Return what a person should know of a compiler's plan for a device.

    Args:
        device: its name.
    """
    return () if device == "cpu" else (UNCHECKED,)


def _correct(search: _Search, first: Solution) -> None:
    """Move the target by what the compiler holds too much, or leaves free, a few times."""
    graph, budget = search.captured.graph, search.budget_bytes
    plain = search.ask(plain_schedule(graph))
    target, found = _ahead(search, plain, first)
    # targets: the largest that was kept, the least that was not
    kept, beyond = graph.resident_bytes, math.inf
    for _ in range(ROUNDS):
        if found.schedule is None or not _worth_asking(search, found.schedule):
            return
        asked = search.ask(found.schedule)
        held = with_margin(search.captured, asked)
        over = held - budget
        # what runs again may be fused with what reads it: then neither buffers nor bound are right
        fused = asked.own_bytes - held > (1 - CLOSE) * budget
        enough = asked.seconds - first.bound_seconds <= ENOUGH * graph.seconds and not fused
        repeats = asked.schedule.order != plain.schedule.order
        if over <= 0 and (enough or held >= CLOSE * budget or not repeats):
            return
        if over > 0:
            search.request.tell(f"the compiler needs {over / budget:.1%} more than that: again")
            beyond = min(beyond, target)
            target = min(target, asked.own_bytes) - over
        elif target < budget or fused:
            kept = max(kept, target)
            target -= over
        else:
            return
        if not kept < target < beyond:  # where fusion changes, what is held jumps
            target = int((kept + beyond) / 2) if kept > graph.resident_bytes else 0
        if target <= graph.resident_bytes or beyond - kept < (1 - CLOSE) * budget:
            return
        if _gain_between(search, target) < ENOUGH * graph.seconds:
            return
        found = search.corrected(target)


def _gain_between(search: _Search, target: int) -> float:
    """Return the seconds that a schedule for a target may gain, if time goes straight from the
    quickest that is kept to the next that is not; infinite where there are not both.
    """
    best = search.best
    beyond = [a for a in search.known if best is not None and a.own_bytes > best.own_bytes]
    if best is None or not beyond:
        return math.inf
    other = min(beyond, key=lambda a: a.own_bytes)
    share = (target - best.own_bytes) / (other.own_bytes - best.own_bytes)
    return max(0.0, share) * (best.seconds - other.seconds)


def _ahead(search: _Search, plain: Candidate, first: Solution) -> tuple[int, Solution]:
    """Return a target, and what was found for it, that leaves room for the margin and for what the
    compiler holds beyond a schedule that repeats nothing: to solve again takes less than to ask.
    """
    budget = search.budget_bytes
    if first.schedule is None:
        return budget, first
    own = search.own(first.schedule).peak_bytes
    beyond = max(0, plain.held_bytes - plain.own_bytes)
    likely = replace(plain, held_bytes=own + beyond)
    over = with_margin(search.captured, likely) - budget
    if over <= 0:
        return budget, first
    found = search.corrected(own - over)
    return (budget, first) if found.schedule is None else (own - over, found)


def _worth_asking(search: _Search, schedule: Schedule) -> bool:
    """Tell a schedule that is not known, and quicker by enough than the best that is."""
    if any(asked.schedule == schedule for asked in search.known):
        return False
    graph, best = search.captured.graph, search.best
    gain = 0.0 if best is None else best.seconds - simulate(graph, schedule).seconds
    return best is None or gain >= ENOUGH * graph.seconds


def _tighten(search: _Search) -> None:
    """Ask of the tightest schedules: the least target is not always what holds least."""
    search.request.tell("looking for the least budget that works")
    graph = search.captured.graph
    tight = leanest(graph, search.calls, search.limits(LEAST))
    leanest_known = min(map(search.ask, tight), key=lambda asked: asked.own_bytes)
    least = leanest_known.own_bytes
    # known, and less than what is fused otherwise may hold; found anew, as it is named in an error
    plain = search.ask(plain_schedule(graph)).own_bytes
    for share in (0.05, 0.15, 0.3):
        target = int(least + share * (plain - least))
        more = replace(leanest_known, held_bytes=leanest_known.held_bytes + target - least)
        if search.best is not None and with_margin(search.captured, more) > search.budget_bytes:
            return  # there is a plan, and no reason to think that this one holds no more
        found = search.anew(target, 1.0)
        if found.schedule is not None:
            search.ask(found.schedule)


def _with_excess(captured: Captured, asked: Candidate) -> Captured:
    """Count what the compiler holds beyond the schedule's own values, as a value of its own."""
    step = captured.compiled
    assert step is not None, "a compiler's step"
    graph = with_others(captured.graph, asked.schedule, step.calls)
    compiled = {**captured.signature["compiled"], "halves": asked.written}
    captured = replace(captured, signature={**captured.signature, "compiled": compiled})
    excess = with_margin(captured, asked) - asked.own_bytes
    if excess <= 0:
        return replace(captured, graph=graph)
    held = Value(EXCESS, excess, Kind.ACTIVATION)
    return replace(captured, graph=replace(graph, values=(*graph.values, held)))


def _judged(graph: Graph, best: Candidate, first: Solution, limits: Limits) -> Solution:
    """Return a solution with the bound of the person's budget, optimal if it is close to that."""
    reordered = best.schedule.is_reordered and not first.reordered
    bound = graph.seconds if reordered else min(first.bound_seconds, best.seconds)
    close = best.seconds - bound <= limits.gap * graph.seconds
    optimal = close and first.status is Status.OPTIMAL
    return Solution(
        Status.OPTIMAL if optimal else Status.FEASIBLE, best.schedule, bound, first.message
    )


def _out_of_reach(search: _Search, reason: str) -> InfeasibleBudget:
    budget = search.budget_bytes
    least = min(search.known, key=lambda a: with_margin(search.captured, a))
    needed = with_margin(search.captured, least)
    graph = with_others(search.captured.graph, least.schedule, search.calls)
    if needed < proven_floor(search.captured.graph):
        reason = ""  # it is of the kernels, which are fused further where they run again
    found = binding(graph, least.schedule, simulate(graph, least.schedule))
    text = (
        f"No schedule was found that the compiler keeps within {format_both(budget)}"
        + (f" ({reason}). " if reason else ". ")
        + f"The least budget that it says works is {format_both(needed)}, that is {needed} bytes. "
        f"What binds there is {found}. "
        f"{advice(budget, tightest(graph, least.schedule, found, needed))}"
    )
    return InfeasibleBudget(budget, needed, found, text)
