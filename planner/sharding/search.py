"""The joint optimum: exact enumeration of configurations, each bounded, opened and solved in turn.

A bound on the seconds of a step rises as more is looked at: compute and the optimizer alone; then,
once its graph is assembled, one linear program, which is nearly as good as the solver's; then the
solver's. A configuration whose bound is not below the best plan is never looked at again, so the
least bound left over holds for all of them.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.errors import CaptureError
from planner.graphs import Graph, Kind
from planner.plan.configuration import Configuration
from planner.plan.time_parts import Spent, spent
from planner.sharding.pricing import (
    CanRealize,
    Needs,
    Planned,
    peak_of,
    plan_step,
    price_recipes,
    what_fills,
)
from planner.solvers import Limits, floor_bytes, lower_bound
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.minimum_budget import proven_floor

_HOST_LATER = 1.02
"""By how much faster offloading has to promise to be in order to be solved first."""

_SHOWN = 2
"""How many further configurations of each way to shard are priced to show its best one."""


@dataclass(frozen=True)
class Space:
    """The configurations, a bound on forward and backward of a whole step, and how to open one.

    What the optimizer does must not depend on the micro-batch. What a step holds must not fall with
    larger micro-batches, gradients that are accumulated aside, nor with smaller groups of ranks.
    ``quick_seconds`` is a bound that takes no capture; what it rules out is never captured.
    ``impossible`` says why a configuration cannot be captured, if it cannot. ``holds`` is what a
    plan holds as it really runs, no less than its tensors.
    """

    configurations: tuple[Configuration, ...]
    floor_seconds: Callable[[Configuration], float]
    open: Callable[[Configuration], CanRealize]
    quick_seconds: Callable[[Configuration], float] = lambda c: 0.0
    impossible: Callable[[Configuration], str] = lambda c: ""
    holds: Needs = peak_of


@dataclass(frozen=True)
class Outcome:
    """What is known of a configuration when the search ends.

    No schedule of it that fits takes less than ``bound_seconds``. ``seconds`` are those of the
    fastest plan seen that fits, ``None`` if none was; ``peak_bytes`` is that plan's, or the lowest
    seen, ``None`` if its memory was never looked at. ``spent`` splits the seconds, of every op once
    if no plan fits. ``fills`` says what fills the device at the lowest peak seen. ``solved`` says
    that the solver was asked; ``impossible`` why there is no such step.
    """

    configuration: Configuration
    bound_seconds: float
    seconds: float | None = None
    peak_bytes: int | None = None
    spent: Spent | None = None
    fills: str = ""
    solved: bool = False
    impossible: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What the search ends with.

    ``bound_seconds`` holds for every configuration; ``recipes`` are the fixed ones of the best;
    ``closest`` is the plan with the lowest peak, whether it fits or not.
    """

    best: Planned | None
    bound_seconds: float
    outcomes: tuple[Outcome, ...]
    recipes: tuple[Planned, ...]
    closest: Planned
    finished: bool


def explore(
    space: Space,
    budget_bytes: int,
    *,
    needs: Needs = peak_of,
    method: str = "auto",
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Find the fastest plan over all configurations, and a bound for all of them.

    Every configuration is opened whose bound is below the best plan, and every recipe is priced
    there, so that no recipe of any configuration is faster than what is found. They are solved
    until the gap is reached.

    Args:
        space: what there is to choose from.
        budget_bytes: of each rank.
        needs: how much of it a plan takes, no less than its tensors.
        method: of the solver.
        limits: of all solving together.
        tell: gets a sentence of what is done next.

    Raises:
        CaptureError: all configurations are impossible.
    """
    search = _Search(
        space, budget_bytes, needs=needs, method=method, limits=limits or Limits(), tell=tell
    )
    for parted in (False, True):  # what is known of whole layers rules out most of the others
        if among := [c for c in space.configurations if (c.tensor_ranks > 1) == parted]:
            search.open_all(among)
            search.solve_all()
    search.show_all()
    if search.closest is None:
        assert search.outcomes, "a space has configurations"
        raise CaptureError(next(o.impossible for o in search.outcomes.values()))
    outcomes, best = tuple(search.outcomes[c] for c in space.configurations), search.best
    bound = min(outcome.bound_seconds for outcome in outcomes)
    if best is None:
        return SearchResult(None, bound, outcomes, (), search.closest, search.finished)
    priced = tuple(price_recipes(best.configuration, space.open(best.configuration)))
    bound = min(bound, best.seconds)
    return SearchResult(best, bound, outcomes, priced, search.closest, search.finished)


class _Search:
    """What is known so far; configurations that may still win keep their step."""

    def __init__(
        self,
        space: Space,
        budget_bytes: int,
        *,
        needs: Needs,
        method: str,
        limits: Limits,
        tell: Callable[[str], None],
    ) -> None:
        self.space, self.budget_bytes, self.needs = space, budget_bytes, needs
        self.method, self.limits, self.tell = method, limits, tell
        self.best: Planned | None = None
        self.closest: Planned | None = None
        self.finished = True
        self.seconds = self.limits.seconds
        self.steps: dict[Configuration, CanRealize] = {}
        self.outcomes: dict[Configuration, Outcome] = {}
        self.optimizer: dict[Configuration, float] = {}
        self.full: list[Full] = []

    def open_all(self, among: Sequence[Configuration]) -> None:
        """Open what its floor does not rule out, those that hold least first."""
        for c in sorted(among, key=_holds_least):
            if self._is_ruled_out(c):
                continue
            quick = self.space.quick_seconds(c) + self._optimizer_seconds(c)
            if quick >= self._enough():
                self.outcomes[c] = Outcome(c, quick)
                continue
            if why := self.space.impossible(c):
                self.outcomes[c] = Outcome(c, math.inf, impossible=why)
                continue
            floor = self.space.floor_seconds(c) + self._optimizer_seconds(c)
            self.outcomes[c] = Outcome(c, floor)
            if floor < self._incumbent():
                self._open(c)

    def solve_all(self) -> None:
        """Solve what is most promising; then bound, then solve what may still be faster.

        Always what has the least bound; the first even if the time is over by then. Where states
        are on the host, a configuration waits for those on the device that are about as good.
        """
        self.finished = True
        deadline, bounded = time.monotonic() + self.seconds, set[Configuration]()
        index = {c: i for i, c in enumerate(self.space.configurations)}
        queue = [(self._promise(c), index[c], c) for c in self.steps]
        heapq.heapify(queue)
        while queue:
            _, i, c = heapq.heappop(queue)
            if self.outcomes[c].bound_seconds >= self._enough():
                continue
            left = deadline - time.monotonic()
            first = not any(outcome.solved for outcome in self.outcomes.values())
            if left <= 0 and not first and self.best is not None:
                enough = self._enough()
                self.finished = all(
                    o.solved or o.bound_seconds >= enough for o in self.outcomes.values()
                )
                break
            least = self.limits.seconds / 2 if first else 1.0
            limits = replace(self.limits, seconds=max(least, left))
            if first or (not self.outcomes[c].solved and (c in bounded or left <= 0)):
                self._solve(c, limits)
            else:
                bounded.add(c)
                self._bound(c, limits)
            if not (c in bounded and self.outcomes[c].solved):
                heapq.heappush(queue, (self._promise(c), i, c))
        self.seconds = max(0.0, deadline - time.monotonic())

    def show_all(self) -> None:
        """Open what may be the fastest of each way to shard, until it is known or seems to be.

        What is best of a way has then been priced, though maybe not solved. What parts layers and
        is not priced by then has a bound, which is shown.
        """
        ways: dict[Configuration, list[Configuration]] = {}
        for c in self.outcomes:
            if c.tensor_ranks == 1:
                ways.setdefault(c.way, []).append(c)
        for among in ways.values():
            for _ in range(_SHOWN):
                outcomes = [self.outcomes[c] for c in among]
                known = min(
                    (o.seconds for o in outcomes if o.seconds is not None), default=math.inf
                )
                unseen = [o for o in outcomes if o.spent is None and o.bound_seconds < known]
                if not unseen:
                    break
                c = min(unseen, key=lambda o: o.bound_seconds).configuration
                if not self._is_ruled_out(c):
                    self._open(c)

    def _optimizer_seconds(self, c: Configuration) -> float:
        """Return what the optimizer takes at least, as far as it is known.

        A rank whose layers are parted has no less to update than where states are sharded over all.
        """
        if c.tensor_ranks == 1 or c.way in self.optimizer:
            return self.optimizer.get(c.way, 0.0)
        least = replace(
            c.way,
            shard_ranks=c.world_size,
            replicas=1,
            tensor_ranks=1,
            sequence_parallel=False,
        )
        return self.optimizer.get(least, 0.0)

    def _is_ruled_out(self, c: Configuration) -> bool:
        """Tell whether what holds no more does not fit, and remember it."""
        less = next((f.configuration for f in self.full if f.rules_out(c)), None)
        if less is None:
            return False
        peak, fills = self.outcomes[less].peak_bytes, self.outcomes[less].fills
        fills = f"{less} does not fit: {fills}"
        self.outcomes[c] = Outcome(c, math.inf, peak_bytes=peak, fills=fills)
        return True

    def _incumbent(self) -> float:
        return math.inf if self.best is None else self.best.seconds

    def _enough(self) -> float:
        """Return the seconds below which a bound is worth a look."""
        return self._incumbent() * (1 - self.limits.gap)

    def _promise(self, c: Configuration) -> float:
        """Return the bound of a configuration, somewhat more where states are on the host."""
        return self.outcomes[c].bound_seconds * (_HOST_LATER if c.offload else 1.0)

    def _open(self, c: Configuration) -> None:
        """Assemble the graph of a configuration and try the recipes on it."""
        self.tell(f"opening {c}")
        step, known = self.space.open(c), self.outcomes[c]
        graph, floor = step.graph, proven_floor(step.graph)
        assert graph.seconds >= known.bound_seconds * (1 - 1e-9), "the floor is no bound"
        fits = floor <= self.budget_bytes
        bound = quick_bound(graph, self.budget_bytes) if fits else math.inf
        tried = list(price_recipes(c, step)) if fits else [next(price_recipes(c, step))]
        least = min(tried, key=peak_of)
        quickest = sorted(tried, key=_seconds)
        best = next((p for p in quickest if self.needs(p) <= self.budget_bytes), None)
        outcome = replace(
            known,
            bound_seconds=bound,
            peak_bytes=least.peak_bytes,
            spent=spent(graph),
            fills=what_fills(least, self.budget_bytes),
        )
        self.optimizer[c.way] = outcome.spent.optimizer if outcome.spent else 0.0
        self._take(c, outcome, best, least)
        if (too_much := full(graph, c, self.budget_bytes)) is not None:
            self.full.append(too_much)
        if bound < self._incumbent():
            self.steps[c] = step

    def _bound(self, c: Configuration, limits: Limits) -> None:
        """Raise the bound of a configuration to what every schedule of it that fits takes."""
        self.tell(f"bounding {c}")
        known, graph = self.outcomes[c], self.steps[c].graph
        bound = max(known.bound_seconds, lower_bound(graph, self.budget_bytes, limits))
        self.outcomes[c] = replace(known, bound_seconds=bound)

    def _solve(self, c: Configuration, limits: Limits) -> None:
        """Schedule the ops of a configuration."""
        self.tell(f"solving {c}")
        known = self.outcomes[c]
        planned = plan_step(
            c,
            self.steps[c],
            self.budget_bytes,
            needs=self.needs,
            bound_seconds=known.bound_seconds,
            method=self.method,
            limits=limits,
        )
        self._take(c, replace(known, solved=True), planned, planned)

    def _take(
        self, c: Configuration, outcome: Outcome, best: Planned | None, least: Planned | None
    ) -> None:
        """Remember an outcome and the plans it came with, if they are better than the known."""
        if best is not None and best.seconds < (outcome.seconds or math.inf):
            outcome = replace(
                outcome,
                seconds=best.seconds,
                peak_bytes=best.peak_bytes,
                spent=spent(best.graph, best.schedule),
            )
        self.outcomes[c] = outcome
        if best is not None and best.seconds < self._incumbent():
            self.best = best
        if least is not None and (self.closest is None or peak_of(least) < peak_of(self.closest)):
            self.closest = least


def _seconds(planned: Planned) -> float:
    return planned.seconds


def _holds_least(c: Configuration) -> tuple[int, ...]:
    """Order configurations: whole layers first, then by what holds less."""
    return (c.tensor_ranks, c.sequence_parallel, c.micro_batch, -c.shard_ranks)


@dataclass(frozen=True)
class Full:
    """A configuration that cannot fit, and whether its states alone are too much."""

    configuration: Configuration
    by_states: bool

    def rules_out(self, c: Configuration) -> bool:
        """Say whether another holds at least as much: as large shards or larger, more samples.

        Shards never grow with more ranks; the buffers they are gathered in may, by padding.
        """
        mine = self.configuration
        alike = _kind(c) == _kind(mine)
        larger = c.shard_ranks == mine.shard_ranks
        larger = larger or (self.by_states and c.shard_ranks < mine.shard_ranks)
        return alike and larger and c.micro_batch >= mine.micro_batch


def _kind(c: Configuration) -> tuple[object, ...]:
    """Return what two configurations have to share for one to hold at least what the other does."""
    return (c.strategy, c.precision, c.offload, c.tensor_ranks, c.sequence_parallel)


def full(graph: Graph, c: Configuration, budget_bytes: int) -> Full | None:
    """Say whether some op alone needs more than the budget, with one sample or with more.

    What larger micro-batches may not hold is left out: gradients kept between micro-steps.

    Args:
        graph: of one rank's step.
        c: what it was assembled for.
        budget_bytes: of each rank.
    """
    kept = [v for v in graph.resident if graph.values[v].kind is Kind.GRADIENT]
    spared = sum(graph.values[v].size_bytes for v in kept) if c.accumulation > 1 else 0
    if floor_bytes(graph) - spared <= budget_bytes:
        return None
    return Full(c, by_states=graph.resident_bytes - spared > budget_bytes)
