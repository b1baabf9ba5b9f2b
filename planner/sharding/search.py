"""The joint optimum: exact enumeration of configurations, each bounded, opened and solved in turn.

Best first by a lower bound on the seconds of a step that only ever rises: compute alone; then, once
its graph is assembled, every op once; then the solver's. A configuration whose bound is not below
the best plan is never looked at again, so the least bound left over holds for all of them. Knows
nothing of how a configuration becomes a graph.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from graphs import Graph, Schedule, Trace, simulate
from planner.sharding.configuration import Configuration, UnitPlan
from planner.sharding.recipes import Recipe, recipes
from solvers import Limits, Solution, Status, floor_bytes, solve

TRIES = 6
"""How often the solver is asked for less than the budget because what runs holds more."""


class Realized(Protocol):
    """What an order comes to when it is carried out."""

    @property
    def units(self) -> tuple[UnitPlan, ...]:
        """What it decides for each unit."""

    @property
    def schedule(self) -> Schedule:
        """What then really runs, as a schedule of the step's graph."""


class ShardedStep(Protocol):
    """One rank's whole step under a configuration; see ``planner.sharding.assemble``."""

    @property
    def graph(self) -> Graph:
        """Everything that runs and is held, communication included."""

    @property
    def host_bytes(self) -> int:
        """What the host of one node holds."""

    def realize(self, order: Sequence[int]) -> Realized:
        """Return what an order decides for each unit, and the schedule that then really runs."""


@dataclass(frozen=True)
class Space:
    """The configurations, a bound on the seconds of a step of each, and how to open one."""

    configurations: tuple[Configuration, ...]
    floor_seconds: Callable[[Configuration], float]
    open: Callable[[Configuration], ShardedStep]


@dataclass(frozen=True)
class Planned:
    """A schedule that really runs under a configuration, and what it costs."""

    configuration: Configuration
    graph: Graph
    host_bytes: int
    units: tuple[UnitPlan, ...]
    schedule: Schedule
    trace: Trace
    recipe: Recipe | None = None

    @property
    def seconds(self) -> float:
        """Of a whole optimizer step."""
        return self.trace.seconds

    @property
    def peak_bytes(self) -> int:
        """The most one rank holds."""
        return self.trace.peak_bytes


@dataclass(frozen=True)
class Outcome:
    """What is known of a configuration when the search ends.

    No schedule of it that fits takes less than ``bound_seconds``. ``best`` is the fastest plan seen
    that fits, ``least`` the one seen with the lowest peak; both are ``None`` if it was not opened.
    ``solved`` says that the solver was asked.
    """

    configuration: Configuration
    bound_seconds: float
    best: Planned | None = None
    least: Planned | None = None
    recipes: tuple[Planned, ...] = ()
    solved: bool = False
    message: str = ""


@dataclass(frozen=True)
class Found:
    """What the search ends with; ``bound_seconds`` holds for every configuration."""

    best: Planned | None
    bound_seconds: float
    outcomes: tuple[Outcome, ...]
    finished: bool


def explore(
    space: Space,
    budget_bytes: int,
    *,
    method: str = "auto",
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Find the fastest plan over all configurations, and a bound for all of them.

    Configurations are opened until none is left whose bound is below the best plan, so that no
    recipe of any configuration is faster than what is found; they are solved until the gap is
    reached or the time is over.
    """
    search = _Search(space, budget_bytes, method, limits or Limits(), tell)
    search.run()
    outcomes = tuple(search.outcomes[c] for c in space.configurations)
    bound = min((o.bound_seconds for o in outcomes), default=math.inf)
    best = search.best
    return Found(best, min(bound, best.seconds) if best else bound, outcomes, search.finished)


class _Search:
    """The queue and what is known so far."""

    def __init__(
        self,
        space: Space,
        budget_bytes: int,
        method: str,
        limits: Limits,
        tell: Callable[[str], None],
    ) -> None:
        self.space, self.budget_bytes = space, budget_bytes
        self.method, self.limits, self.tell = method, limits, tell
        self.deadline = time.monotonic() + limits.seconds
        self.best: Planned | None = None
        self.finished = True
        self.steps: dict[Configuration, ShardedStep] = {}
        self.outcomes = {c: Outcome(c, space.floor_seconds(c)) for c in space.configurations}

    def run(self) -> None:
        """Open and solve, always what has the least bound."""
        index = {c: i for i, c in enumerate(self.space.configurations)}
        queue = [(self.outcomes[c].bound_seconds, i, c) for c, i in index.items()]
        heapq.heapify(queue)
        while queue and queue[0][0] < self._incumbent():
            _, i, configuration = heapq.heappop(queue)
            if configuration not in self.steps:
                self.outcomes[configuration] = self._open(configuration)
                heapq.heappush(
                    queue, (self.outcomes[configuration].bound_seconds, i, configuration)
                )
            elif self._worth(self.outcomes[configuration]):
                self.outcomes[configuration] = self._solve(configuration)
            else:
                self.steps.pop(configuration)
        self.steps.clear()
        self._show()

    def _worth(self, outcome: Outcome) -> bool:
        """Say whether solving an opened configuration can narrow the gap, and there is time."""
        if outcome.bound_seconds >= self._incumbent() * (1 - self.limits.gap):
            return False
        late = time.monotonic() > self.deadline and self.best is not None
        self.finished = self.finished and not late
        return not late

    def _show(self) -> None:
        """Open the most promising of each way to shard that was never looked at, for its memory."""
        ways: dict[Configuration, list[Outcome]] = {}
        for outcome in self.outcomes.values():
            ways.setdefault(outcome.configuration.way, []).append(outcome)
        for outcomes in ways.values():
            if all(outcome.least is None for outcome in outcomes):
                first = min(outcomes, key=lambda outcome: outcome.bound_seconds).configuration
                self.outcomes[first] = self._open(first)
                self.steps.pop(first)

    def _incumbent(self) -> float:
        return math.inf if self.best is None else self.best.seconds

    def _open(self, configuration: Configuration) -> Outcome:
        """Assemble the graph of a configuration, and try the recipes on it."""
        self.tell(f"opening {configuration}")
        step = self.steps[configuration] = self.space.open(configuration)
        known = self.outcomes[configuration]
        assert step.graph.seconds >= known.bound_seconds * (1 - 1e-9), "the floor is no bound"
        tried = tuple(price_recipes(configuration, step))
        fitting = [p for p in tried if p.peak_bytes <= self.budget_bytes]
        best = min(fitting, key=_seconds, default=None)
        self._offer(best)
        fits = floor_bytes(step.graph) <= self.budget_bytes
        return replace(
            known,
            bound_seconds=step.graph.seconds if fits else math.inf,
            best=best,
            least=min(tried, key=lambda p: p.peak_bytes),
            recipes=tried,
            message="" if fits else "one op alone needs more than the budget",
        )

    def _solve(self, configuration: Configuration) -> Outcome:
        """Schedule the ops of a configuration."""
        self.tell(f"solving {configuration}")
        known, step = self.outcomes[configuration], self.steps.pop(configuration)
        left = max(1.0, self.deadline - time.monotonic())
        limits = replace(self.limits, seconds=left)
        planned, solution = plan_step(
            configuration, step, self.budget_bytes, method=self.method, limits=limits
        )
        best = min((p for p in (planned, known.best) if p is not None), key=_seconds, default=None)
        self._offer(best)
        bound = max(known.bound_seconds, solution.bound_seconds)
        if solution.status is Status.INFEASIBLE:
            bound = math.inf
        return replace(known, bound_seconds=bound, best=best, solved=True, message=solution.message)

    def _offer(self, planned: Planned | None) -> None:
        if planned is not None and planned.seconds < self._incumbent():
            self.best = planned


def _seconds(planned: Planned) -> float:
    return planned.seconds


def price_recipes(configuration: Configuration, step: ShardedStep) -> Iterator[Planned]:
    """Yield what every fixed recipe costs under a configuration, whether it fits or not."""
    for recipe, order in recipes(configuration, step.graph):
        yield price(configuration, step, order, recipe)


def price(
    configuration: Configuration,
    step: ShardedStep,
    order: Sequence[int],
    recipe: Recipe | None = None,
) -> Planned:
    """Return what really runs when an order is carried out, and what it costs."""
    real = step.realize(order)
    trace = simulate(step.graph, real.schedule)
    return Planned(
        configuration, step.graph, step.host_bytes, real.units, real.schedule, trace, recipe
    )


def plan_step(
    configuration: Configuration,
    step: ShardedStep,
    budget_bytes: int,
    *,
    method: str = "auto",
    limits: Limits | None = None,
) -> tuple[Planned | None, Solution]:
    """Schedule the ops of a step so that what really runs fits; the solution is the true budget's.

    What runs may hold more than the solver's order: a gathered weight is fetched one unit ahead.
    The solver is then asked for as much less as was lacking.
    """
    first = solution = solve(step.graph, budget_bytes, method=method, limits=limits)
    target = budget_bytes
    for _ in range(TRIES):
        if solution.schedule is None:
            break
        planned = price(configuration, step, solution.schedule.order)
        if planned.peak_bytes <= budget_bytes:
            return planned, first
        target -= planned.peak_bytes - budget_bytes
        solution = solve(step.graph, target, method=method, limits=limits)
    return None, first
