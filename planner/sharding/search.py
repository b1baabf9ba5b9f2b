"""The joint optimum: exact enumeration of configurations, each bounded, opened and solved in turn.

A bound on the seconds of a step rises as more is looked at: compute and the optimizer alone; then,
once its graph is assembled, one linear program, which is nearly as good as the solver's; then the
solver's. A configuration whose bound is not below the best plan is never looked at again, so the
least bound left over holds for all of them. So it is with which units have their states on the
host, once all of them and none were looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.byte_sizes import format_bytes
from planner.errors import CaptureError
from planner.graphs import Graph
from planner.plan.configuration import Configuration
from planner.plan.time_parts import spent
from planner.sharding.host_choices import HostChoices
from planner.sharding.pricing import (
    CanRealize,
    Needs,
    Planned,
    peak_of,
    plan_step,
    price_recipes,
    what_fills,
)
from planner.sharding.space import Outcome, SearchResult, Space, holds_least, in_groups
from planner.sharding.too_full import Full, full
from planner.solvers import Limits, lower_bound
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.minimum_budget import proven_floor

_HOST_LATER = 1.02
"""By how much faster offloading has to promise to be in order to be solved first."""

ON_HOST = "states on the host are"
"""How it is said that they are too large for it."""

_FOR_UNITS = 0.25
"""Of all seconds, what is there at least for the choice of units whose states are on the host."""

_CHOICES = 6
"""How many choices of units are solved because they seem the fastest, and how many to prove it."""

_SHOWN = 2
"""How many further configurations of each way to shard are priced to show its best one."""


def explore(
    space: Space,
    budget_bytes: int,
    *,
    needs: Needs = peak_of,
    below_seconds: float = math.inf,
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
        below_seconds: a plan is of use only if it takes less.
        method: of the solver.
        limits: of all solving together.
        tell: gets a sentence of what is done next.

    Raises:
        CaptureError: all configurations are impossible.
    """
    search = _Search(
        space, budget_bytes, needs=needs, method=method, limits=limits or Limits(), tell=tell
    )
    search.below_seconds = below_seconds
    groups = in_groups(space.configurations)
    for among in groups:
        search.open_all(among)
        search.solve_all(last=among is groups[-1])
    left_seconds = search.choose_units()
    search.show_all()
    search.show_without_host()
    search.see_one()
    assert search.closest is not None
    known = dict.fromkeys((*space.configurations, *search.outcomes))
    outcomes, best = tuple(search.outcomes[c] for c in known), search.best
    bound = min(left_seconds, *(outcome.bound_seconds for outcome in outcomes))
    if best is None:
        return SearchResult(None, bound, outcomes, (), search.closest, search.finished)
    step = search.steps.get(best.configuration) or space.open(best.configuration)
    priced = tuple(price_recipes(best.configuration, step))
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
        self.below_seconds = math.inf
        self.closest: Planned | None = None
        self.finished = True
        self.seconds = self.limits.seconds
        self.steps: dict[Configuration, CanRealize] = {}
        self.outcomes: dict[Configuration, Outcome] = {}
        self.optimizer: dict[Configuration, float] = {}
        self.full: list[Full] = []
        self.bounded: set[Configuration] = set()

    def open_all(self, among: Sequence[Configuration]) -> None:
        """Open what its floor does not rule out, those that hold least first."""
        for c in sorted(among, key=holds_least):
            if self._is_ruled_out(c) or self._is_too_large(c):
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

    def solve_all(self, *, last: bool = True) -> None:
        """Solve what is most promising; then bound, then solve what may still be faster.

        Always what has the least bound; the first even if the time is over by then. While nothing
        is known to fit, what was seen to hold least comes first, those that are not the last leave
        half of the time to others, and the last get as much again. Where states are on the host, a
        configuration waits for those on the device that are about as good.

        Args:
            last: there are no others to open.
        """
        self.finished = True
        start = time.monotonic()
        while (c := self._next()) is not None:
            spent_seconds = time.monotonic() - start
            left = self.seconds - spent_seconds
            if not self._knows_one():
                left += self.limits.seconds if last else -self.seconds / 2
            first = not any(outcome.solved for outcome in self.outcomes.values())
            if left <= 0 and not first:
                self.finished = False
                break
            least = self.limits.seconds / 2 if first else 1.0
            limits = replace(self.limits, seconds=max(least, left))
            if first or (not self.outcomes[c].solved and c in self.bounded):
                self._solve(c, limits)
            else:
                self.bounded.add(c)
                self._bound(c, limits)
        self.seconds = max(0.0, self.seconds - (time.monotonic() - start))

    def _next(self) -> Configuration | None:
        """Return what to bound or solve next, if anything may still be faster."""
        enough, index = self._enough(), {c: i for i, c in enumerate(self.steps)}
        among = [
            c
            for c in self.steps
            if self.outcomes[c].bound_seconds < enough
            and not (c in self.bounded and self.outcomes[c].solved)
        ]
        if not self._knows_one():
            return min(among, key=lambda c: (self._peak(c), index[c]), default=None)
        return min(among, key=lambda c: (self._promise(c), index[c]), default=None)

    def _peak(self, c: Configuration) -> tuple[bool, float]:
        outcome = self.outcomes[c]
        return outcome.solved, math.inf if outcome.peak_bytes is None else outcome.peak_bytes

    def choose_units(self) -> float:
        """Open and solve choices of the units whose states are on the host.

        First those that seem the fastest, then those of the least bounds. Returns seconds that no
        choice takes less than which was not looked at. Where nothing fits and the host has no room
        for all states, as much as it has room for is looked at last.
        """
        start = time.monotonic()
        deadline = start + max(self.seconds, self.limits.seconds * _FOR_UNITS)
        choices = HostChoices(self.space, self._floors_of_units(), self.budget_bytes)

        def bound(graph: Graph, room_bytes: int) -> float:
            return lower_bound(graph, room_bytes, self.limits.until(deadline))

        for _ in range(_CHOICES):
            c = choices.promising(self._enough(), (start + deadline) / 2)
            if c is None:
                break
            self._look_at(c, 0.0, deadline)
            choices.note(c, self.outcomes[c].seconds, self._lost_bytes(c))
        for _ in range(_CHOICES):
            taken = choices.take(self._enough(), bound, deadline)
            if taken is None:
                break
            self._look_at(*taken, deadline)
        if not self._knows_one():
            for c in [c for c in choices.most() if self._has_no_room(c)]:
                self._look_at(c, 0.0, deadline)
        others = choices.others_seconds(self._enough(), bound, deadline)
        self.seconds = max(0.0, self.seconds - (time.monotonic() - start))
        return min(choices.bound_seconds, others)

    def _look_at(self, c: Configuration, bound_seconds: float, deadline: float) -> None:
        """Open and solve a choice of units.

        Args:
            c: the choice.
            bound_seconds: no schedule of it takes less.
            deadline: when to stop, by ``time.monotonic``; a second is there in any case.
        """
        self.outcomes[c] = Outcome(c, 0.0)
        self._open(c)
        found = self.outcomes[c]
        self.outcomes[c] = replace(found, bound_seconds=max(found.bound_seconds, bound_seconds))
        for work in (self._bound, self._solve):
            if c in self.steps and self.outcomes[c].bound_seconds < self._enough():
                limits = self.limits.until(deadline)
                work(c, replace(limits, seconds=max(1.0, limits.seconds)))
        seconds = self.outcomes[c].seconds
        assert seconds is None or seconds >= bound_seconds * (1 - 1e-6), "the choice's is no bound"

    def _lost_bytes(self, c: Configuration) -> int:
        """Return what a plan needs beside its tensors, as that of a configuration shows."""
        if self.best is not None and self.best.configuration == c:
            return self.needs(self.best) - self.best.peak_bytes
        found = self.outcomes[c]
        held = math.inf if found.peak_bytes is None else found.peak_bytes
        if found.seconds is not None or held > self.budget_bytes:
            return 0
        return self.budget_bytes - int(held) + 1

    def _floors_of_units(self) -> dict[Configuration, float]:
        """Return what no choice of units takes less than, by configurations with all on the host.

        Those are left out that hold too much with all on the host already. The optimizer, which
        may take less in parts where its calls are what takes time, counts for nothing.
        """
        found = {}
        for c, outcome in self.outcomes.items():
            too_much = outcome.bound_seconds == math.inf and not self._has_no_room(c)
            if not c.offload or outcome.impossible or too_much:
                continue
            here = replace(c, offload=False)
            floor, twin = self.space.quick_seconds(here), self.outcomes.get(here)
            if twin is not None and twin.spent is not None:
                floor = twin.spent.compute + twin.spent.communication
            elif floor < self._enough() and not self.space.impossible(here):
                floor = self.space.floor_seconds(here)
            found[c] = floor
        return found

    def _has_no_room(self, c: Configuration) -> bool:
        """Tell whether the host has no room for all states of a configuration."""
        return self.outcomes[replace(c, staying=())].fills.startswith(ON_HOST)

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

    def show_without_host(self) -> None:
        """Solve what may be the fastest without the host, if the best has its states there.

        So it is known what the host is worth; where no time is left, recipes stand for it.
        """
        if self.best is None or not self.best.configuration.offload or self.seconds <= 0:
            return
        among = [c for c in self.steps if not c.offload]
        if among and not any(self.outcomes[c].solved for c in among):
            c = min(among, key=lambda c: self.outcomes[c].bound_seconds)
            self._solve(c, replace(self.limits, seconds=max(1.0, self.seconds)))

    def see_one(self) -> None:
        """Open what holds least if nothing was opened, so that it is known how close it comes.

        Raises:
            CaptureError: all configurations are impossible.
        """
        if self.closest is not None:
            return
        for c in sorted(self.outcomes, key=lambda c: (self.space.least_bytes(c), holds_least(c))):
            if why := self.outcomes[c].impossible or self.space.impossible(c):
                self.outcomes[c] = Outcome(c, math.inf, impossible=why)
                continue
            self._open(c)
            if self.closest is not None:
                return
        reasons = dict.fromkeys(o.impossible or o.fills for o in self.outcomes.values())
        raise CaptureError("; ".join(reasons))

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
        less = next((f for f in self.full if f.rules_out(c)), None)
        if less is None:
            return False
        seen = self.outcomes[less.seen]
        fills = f"{less.seen} does not fit: {seen.fills}"
        self.outcomes[c] = Outcome(c, math.inf, peak_bytes=seen.peak_bytes, fills=fills)
        return True

    def _is_too_large(self, c: Configuration) -> bool:
        """Tell whether what a configuration holds from end to end does not fit."""
        held = self.space.least_bytes(c)
        if held <= self.budget_bytes:
            return False
        fills = f"model states alone hold {format_bytes(held)}"
        self.outcomes[c] = Outcome(c, math.inf, peak_bytes=held, fills=fills)
        return True

    def _knows_one(self) -> bool:
        """Tell whether some plan is known to fit, of this search or another."""
        return self._incumbent() < math.inf

    def _incumbent(self) -> float:
        return self.below_seconds if self.best is None else self.best.seconds

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
        if step.host_bytes > self.space.host_bytes:
            more = f"{format_bytes(step.host_bytes)} a rank, more than the host has for it"
            self.outcomes[c] = Outcome(c, math.inf, fills=f"{ON_HOST} {more}")
            return
        graph, floor = step.graph, max(proven_floor(step.graph), step.floor_bytes())
        if known.bound_seconds < math.inf:
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
        if not c.staying:
            self.optimizer[c.way] = outcome.spent.optimizer if outcome.spent else 0.0
        self._take(c, outcome, best, least)
        if (too_much := full(step, c, self.budget_bytes)) is not None:
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
