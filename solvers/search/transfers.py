"""When to copy: from an order of ops and what is to be away between two of its positions to steps.

A copy out begins as soon as it may. It is waited for, and the value freed, where it should have
ended by then, or earlier where its room is needed. A copy back begins as late as it may without
anything waiting for it, or later where there is no room for it yet. Knows nothing of what should be
away: see ``solvers.search.moved_values``.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graphs import (
    Action,
    Graph,
    Schedule,
    Step,
    Trace,
    simulate,
)
from planner.solvers.model.gaps import Gap, with_copies
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.tuning import HOST_ROUNDS


@dataclass(frozen=True, slots=True)
class Moved:
    """A schedule that moves values, and what ``simulate`` found of it."""

    order: tuple[int, ...]
    gaps: tuple[Gap, ...]
    schedule: Schedule
    trace: Trace


@dataclass(frozen=True, slots=True)
class PlacedCopies:
    """Where the copies of an order are, and the seconds that it then takes, as ``simulate`` says.

    They are known without the schedule, which ``moved`` makes of it.
    """

    places: _Places
    seconds: float

    def moved(self, problem: HostProblem) -> Moved:
        """Return the schedule, judged.

        Args:
            problem: whose places these are.
        """
        schedule = self.places.schedule(problem.graph)
        trace = simulate(problem.graph, schedule, link_bytes_per_second=problem.tier.rates)
        assert math.isclose(trace.seconds, self.seconds), "the clocks here are those of simulate"
        return Moved(tuple(self.places.order), tuple(self.places.used()), schedule, trace)


def begin_seconds(problem: Problem, order: Sequence[int]) -> NDArray[np.float64]:
    """Return when each position of an order begins if nothing waits, and when the last one ends."""
    return np.concatenate(([0.0], np.cumsum([problem.seconds[op] for op in order])))


def placed(problem: HostProblem, order: Sequence[int], gaps: Iterable[Gap]) -> PlacedCopies | int:
    """Return when values are away in gaps of an order, or a position that holds too much.

    Args:
        problem: the step, the budget and the host.
        order: the ops to run, repetitions included.
        gaps: of the order; one that no time is left for is not used.
    """
    begins = begin_seconds(problem.flat, order)
    best: PlacedCopies | None = None
    for _ in range(HOST_ROUNDS):
        places = _Places(problem, order, sorted(gaps), begins)
        short = places.make_room(problem.budget_bytes)
        if short is not None:
            return short if best is None else best
        begins = places.clocks()
        seconds = float(begins[-1])
        if best is None or seconds < best.seconds:
            best = PlacedCopies(places, seconds)
    assert best is not None, "there are rounds"
    return best


class _Places:
    """Where each copy out ends to be waited for, and each copy back begins, as positions."""

    def __init__(
        self,
        problem: HostProblem,
        order: Sequence[int],
        gaps: Sequence[Gap],
        begins: NDArray[np.float64],
    ) -> None:
        self.problem, self.order, self.gaps = problem.flat, order, gaps
        self.to_host, self.from_host = problem.tier.to_host, problem.tier.from_host
        self.begins = begins.tolist()
        self.freed = [0] * len(gaps)
        self.fetched = [0] * len(gaps)
        self.held = held_bytes(problem.flat, order)
        self._copy_out()
        self._copy_back()
        for k in range(len(gaps)):
            self._away(k, self.freed[k], self.fetched[k], -1)

    def _copy_out(self) -> None:
        free = 0.0
        for k, gap in enumerate(self.gaps):  # by where they may begin
            size = self.problem.sizes[gap.value]
            free = max(free, self.begins[gap.made + 1]) + size / self.to_host
            ended = bisect_left(self.begins, free - 1e-12)
            self.freed[k] = min(max(gap.after + 1, ended), gap.before)

    def _copy_back(self) -> None:
        free = self.begins[-1]
        for k in sorted(range(len(self.gaps)), key=lambda k: -self.gaps[k].before):
            gap = self.gaps[k]
            size = self.problem.sizes[gap.value]
            free = min(free, self.begins[gap.before]) - size / self.from_host
            begun = bisect_right(self.begins, free + 1e-12) - 1
            self.fetched[k] = min(max(begun, self.freed[k]), gap.before)

    def _away(self, k: int, begin: int, end: int, sign: int) -> None:
        if begin < end:
            self.held[begin:end] += sign * self.problem.sizes[self.gaps[k].value]

    def make_room(self, budget: int) -> int | None:
        """Wait for copies earlier, begin others later; return where that is not enough, if so."""
        starts: defaultdict[int, list[int]] = defaultdict(list)
        for k, gap in enumerate(self.gaps):
            starts[gap.after + 1].append(k)
        inside: list[int] = []
        for i in range(len(self.order)):
            inside += starts.pop(i, ())
            if self.held[i] <= budget:
                continue
            inside = [k for k in inside if self.gaps[k].before > i]
            if not self._leave(inside, i, budget) and not self._wait(inside, i, budget):
                return i
        return None

    def _leave(self, inside: list[int], i: int, budget: int) -> bool:
        """Wait at a position for what is on its way out, what began first first."""
        for k in inside:
            if self.held[i] <= budget:
                break
            if self.freed[k] > i:
                self._away(k, i, self.freed[k], -1)
                self.freed[k] = i
        return bool(self.held[i] <= budget)

    def _wait(self, inside: list[int], i: int, budget: int) -> bool:
        """Begin copies back after a position, what is read last first."""
        for k in sorted(inside, key=lambda k: -self.gaps[k].before):
            if self.held[i] <= budget:
                break
            if self.freed[k] <= i and self.fetched[k] <= i:
                self._away(k, self.fetched[k], i + 1, -1)
                self.fetched[k] = i + 1
        return bool(self.held[i] <= budget)

    def clocks(self) -> NDArray[np.float64]:
        """Return when each position begins with these copies, and when all has ended at last.

        Device and links wait for each other as they do in ``graphs.simulate``.
        """
        made, freed, fetched, read = (defaultdict[int, list[int]](list) for _ in range(4))
        away = [k for k in range(len(self.gaps)) if self.freed[k] < self.fetched[k]]
        for k in away:
            made[self.gaps[k].made].append(k)
            freed[self.freed[k]].append(k)
        for k in sorted(away, key=lambda k: self.gaps[k].before):
            fetched[self.fetched[k]].append(k)
            read[self.gaps[k].before].append(k)
        device = out = back = 0.0
        left, arrived = dict[int, float](), dict[int, float]()
        begins: list[float] = []
        for i, op in enumerate(self.order):
            for k in freed.get(i, ()):
                device = max(device, left[k])
            for k in fetched.get(i, ()):
                back = max(back, device) + self.problem.sizes[self.gaps[k].value] / self.from_host
                arrived[k] = back
            for k in read.get(i, ()):
                device = max(device, arrived[k])
            begins.append(device)
            device += self.problem.seconds[op]
            for k in made.get(i, ()):
                out = max(out, device) + self.problem.sizes[self.gaps[k].value] / self.to_host
                left[k] = out
        return np.array([*begins, max(device, out, back)])

    def used(self) -> list[Gap]:
        """Return the gaps in which something is away."""
        return [g for g, a, f in zip(self.gaps, self.freed, self.fetched, strict=True) if a < f]

    def schedule(self, graph: Graph) -> Schedule:
        """Return the steps."""
        before: defaultdict[int, list[Step]] = defaultdict(list)
        after: defaultdict[int, list[Step]] = defaultdict(list)
        places = list(zip(self.gaps, self.freed, self.fetched, strict=True))
        for gap, freed, fetched in places:
            if freed < fetched:
                after[gap.made].append(Step(Action.OFFLOAD, gap.value))
                before[freed].append(Step(Action.FREE, gap.value))
        for gap, freed, fetched in sorted(places, key=lambda place: place[0].before):
            if freed < fetched:
                before[fetched].append(Step(Action.FETCH, gap.value))
        return with_copies(graph, self.order, before, after)
