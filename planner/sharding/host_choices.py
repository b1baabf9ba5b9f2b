"""The choices over units of all configurations that may have states on the host, the best first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from planner.graphs import Graph
from planner.plan.configuration import Configuration
from planner.sharding.host_choice import HostChoice
from planner.sharding.space import Space


class HostChoices:
    """What is known of the choices of some configurations; a step is opened when its turn comes.

    Args:
        space: what there is to choose from.
        floors: by configurations with all states on the host, seconds that no choice of each takes
            less than.
        budget_bytes: of each rank.
    """

    def __init__(
        self, space: Space, floors: Mapping[Configuration, float], budget_bytes: int
    ) -> None:
        self.space, self.budget_bytes = space, budget_bytes
        self.floors = dict(floors)
        self.opened: dict[Configuration, HostChoice] = {}

    @property
    def bound_seconds(self) -> float:
        """What no choice that was not taken takes less than."""
        known = [choice.bound_seconds for choice in self.opened.values()]
        return min([*self.floors.values(), *known], default=math.inf)

    def others_seconds(
        self, enough: float, bound: Callable[[Graph, int], float], deadline: float
    ) -> float:
        """Return what no choice takes less than of which another was taken instead.

        Args:
            enough: seconds below which a bound is worth a look.
            bound: what a graph takes at least within a budget.
            deadline: when to stop looking, by ``time.monotonic``.
        """
        for choice in self.opened.values():
            while choice.others_seconds < enough and time.monotonic() < deadline:
                if not choice.is_deep:
                    choice.deepen()
                elif (room := choice.others_room_bytes) is not None:
                    choice.learn(room, bound(choice.states.step.graph, room))
                else:
                    break
        return min((choice.others_seconds for choice in self.opened.values()), default=math.inf)

    def promising(self, enough: float, deadline: float) -> Configuration | None:
        """Take the choice that seems the fastest, if any seems fast enough.

        Args:
            enough: seconds.
            deadline: when to stop looking, by ``time.monotonic``.
        """
        while self._least_known() < enough and time.monotonic() < deadline:
            self._know_more()
        c = min(self.opened, key=lambda c: self.opened[c].promise_seconds, default=None)
        if c is None or self.opened[c].promise_seconds >= enough:
            return None
        return replace(c, staying=self.opened[c].take(promising=True))

    def note(self, c: Configuration, seconds: float | None, lost_bytes: int) -> None:
        """Note what was found of a choice.

        Args:
            c: the choice.
            seconds: it takes; ``None`` if nothing was found that fits.
            lost_bytes: what a plan needs at least beside its tensors.
        """
        if seconds is not None:
            self.opened[replace(c, staying=())].note(c.staying, seconds)
        for choice in self.opened.values():
            if lost_bytes > choice.lost_bytes:
                choice.lost_bytes = lost_bytes
                choice.look()

    def take(
        self, enough: float, bound: Callable[[Graph, int], float], deadline: float
    ) -> tuple[Configuration, float] | None:
        """Take the choice of the least bound, and return it with that; none if there is none left.

        Args:
            enough: seconds below which a bound is worth a look.
            bound: what a graph takes at least within a budget.
            deadline: when to stop looking, by ``time.monotonic``.
        """
        while self.bound_seconds < enough and time.monotonic() < deadline:
            if self._least_known() <= self.bound_seconds:
                self._know_more()
                continue
            c = min(self.opened, key=lambda c: self.opened[c].bound_seconds)
            choice = self.opened[c]
            if (room := choice.room_bytes) is not None:
                choice.learn(room, bound(choice.states.step.graph, room))
                continue
            seconds = choice.bound_seconds
            return replace(c, staying=choice.take()), seconds
        return None

    def most(self) -> Iterator[Configuration]:
        """Yield of every configuration the choice with as much on the host as has room there."""
        for c in tuple(self.floors):
            self._open(c)
        for c, choice in self.opened.items():
            if (stay := choice.take_most()) is not None:
                yield replace(c, staying=stay)

    def _least_known(self) -> float:
        """Return the least bound of what little is known of."""
        flat = [choice.bound_seconds for choice in self.opened.values() if not choice.is_deep]
        return min([*self.floors.values(), *flat], default=math.inf)

    def _know_more(self) -> None:
        """Open the step, or look deeper into it, of which little is known and that may be best."""
        flat = {c: x.bound_seconds for c, x in self.opened.items() if not x.is_deep} | self.floors
        c = min(flat, key=flat.__getitem__)
        if c in self.floors:
            self._open(c)
        else:
            self.opened[c].deepen()

    def _open(self, c: Configuration) -> None:
        del self.floors[c]
        states = self.space.movable(replace(c, offload=False))
        if states is not None:
            self.opened[c] = HostChoice(states, self.budget_bytes, self.space.host_bytes)
