"""Whose states wait on the host: every choice over the units of a step, bounded and foreseen.

A step with the states of a set S of units on the host runs the ops of the one with none there. It
holds at most ``saved(S)`` bytes less and takes at least ``extra(S)`` seconds more, both sums over
S (``Movable``). So with f(B) a lower bound on the time of the step with none there within B bytes,
no schedule with S there takes less within B than

    f(B + saved(S)) + extra(S),

and about as much does a known schedule of that step take which holds no more than B + saved(S).

Units that are alike count as one kind of which some number is there: those that come last in the
model, whose gradients wait longest. What hardly counts stays: its bytes are taken to be saved for
nothing. Others that are as many are not looked at: a bound that was theirs, too, stays. Where kinds
are too many for all numbers to be looked at, the most alike are taken together, each for the best
of them: what is said is a bound then, too. f is the greatest of some lines and of the bounds of a
solver at single budgets, each of which holds at every lower budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from planner.graphs import Graph
from planner.sharding.pricing import price_recipes
from planner.sharding.step_graph.movable import Movable, MovableStates
from planner.solvers.bounds.parametric import Line, supporting_line
from planner.solvers.minimum_budget import proven_floor
from planner.solvers.model.problem import flatten, held_bytes

MOST_CHOICES = 200_000
"""How many numbers of units of each kind are looked at, all kinds together."""
_TINY = 0.002
"""The share of all bytes below which a unit stays on the device."""
_LINES = 4
"""At how many budgets a line is looked for."""

Floats = NDArray[np.float64]


class HostChoice:
    """The choices of one step within a budget; what is known of them grows as they are looked at.

    Args:
        states: what may be on the host.
        budget_bytes: of the device.
        host_bytes: of the host, for one rank.

    ``lost_bytes`` are what a plan needs beside its tensors, as far as is known.
    """

    def __init__(self, states: MovableStates, budget_bytes: int, host_bytes: float) -> None:
        self.states, self.budget_bytes = states, budget_bytes
        all_bytes = sum(group.saved_bytes for group in states.groups)
        self.tiny = [g for g in states.groups if g.saved_bytes < _TINY * all_bytes]
        self.kinds = _kinds([g for g in states.groups if g not in self.tiny])
        sizes = [len(kind) + 1 for kind in self.kinds]
        self.counts = np.indices(sizes).reshape(len(sizes), -1)
        each = np.array([_best(kind) for kind in self.kinds]).reshape(len(sizes), 4)
        self.saved, temporaries, there, self.extra = each.T @ self.counts
        self.spared = sum(group.saved_bytes for group in self.tiny)
        moved = self.counts.sum(axis=0)
        some = (moved > 0) & ((moved < len(states.groups)) | bool(states.tables))
        spared = self.spared + sum(group.workspace_bytes for group in self.tiny)
        fits = states.optimizer_bytes - self.saved - temporaries - spared <= budget_bytes
        self.open = some & fits & (there <= host_bytes)
        whole = (self.counts == 0) | (self.counts == np.array(sizes)[:, None] - 1)
        self.shared = fits & (there <= host_bytes) & (~whole.all(axis=0) | bool(self.tiny))
        self.passed = self.shared & (moved == 0)
        self.rooms = self.saved[self.open] + self.spared + budget_bytes
        self.curve = _Curve(states.step.graph)
        self.plans = list[tuple[int, float]]()
        self.bounded, self.lost_bytes = set[int](), 0
        self.is_deep = False
        self.look()

    def deepen(self) -> None:
        """Count memory, too, which takes a while: before, a step takes what its ops take once."""
        self.is_deep = True
        self.curve = _curve(self.states, self.rooms)
        recipes = price_recipes(self.states.step.configuration, self.states.step)
        self.plans += [(planned.peak_bytes, planned.seconds) for planned in recipes]
        self.look()

    def look(self) -> None:
        """Find what every choice takes at least, and about, as far as is known."""
        room = self.budget_bytes + self.saved
        cheaper = sum(min(0.0, group.seconds) for group in self.tiny)
        bounds = self.curve.at(room + self.spared) + self.extra + cheaper
        self.bounds = np.where(self.open, bounds, math.inf)
        self.others = np.where(self.passed, bounds, math.inf)
        promise = np.full(room.shape, math.inf)
        for peak_bytes, seconds in self.plans:
            enough = peak_bytes + self.lost_bytes <= room
            promise = np.where(enough, np.minimum(promise, seconds), promise)
        self.promise = np.where(self.open, np.maximum(promise + self.extra, self.bounds), math.inf)

    @property
    def bound_seconds(self) -> float:
        """What no choice that was not taken yet takes less than."""
        return float(self.bounds.min(initial=math.inf))

    @property
    def others_seconds(self) -> float:
        """What no choice takes less than of which another was taken instead."""
        return float(self.others.min(initial=math.inf))

    @property
    def promise_seconds(self) -> float:
        """About what the best of the choices that were not taken takes, by a known schedule."""
        return float(self.promise.min(initial=math.inf))

    @property
    def room_bytes(self) -> int | None:
        """The budget at which a better bound of the step is wanted; none if the best choice has it.

        It is that of ``states.step`` with all that the choice of the least bound saves.
        """
        return self._room(self.bounds)

    @property
    def others_room_bytes(self) -> int | None:
        """The same for the choices of which others were taken instead."""
        return self._room(self.others)

    def _room(self, bounds: Floats) -> int | None:
        room = self.budget_bytes + self.spared + int(self.saved[bounds.argmin()])
        return None if room in self.bounded else room

    def learn(self, room_bytes: int, seconds: float) -> None:
        """Note what ``states.step`` takes at least within a budget, and so within any less."""
        self.bounded.add(room_bytes)
        self.curve.known.append((room_bytes, seconds))
        self.look()

    def take(self, *, promising: bool = False) -> tuple[str, ...]:
        """Return the units that stay in the choice of the least bound, and close it.

        Args:
            promising: take the choice that seems the fastest.
        """
        return self._take(int((self.promise if promising else self.bounds).argmin()))

    def take_most(self) -> tuple[str, ...] | None:
        """Return the units that stay if as much as can be is on the host, and close that choice."""
        if not self.open.any():
            return None
        return self._take(int(np.where(self.open, self.saved, -1).argmax()))

    def note(self, staying: Sequence[str], seconds: float) -> None:
        """Note how long a choice takes, which says what a schedule of the step takes in its room.

        Args:
            staying: the units that stay in it.
            seconds: of the fastest schedule that was found.
        """
        there = [group for group in self.states.groups if group.path not in staying]
        room = self.budget_bytes + sum(group.saved_bytes for group in there)
        self.plans.append((room, seconds - sum(group.seconds for group in there)))
        self.look()

    def _take(self, index: int) -> tuple[str, ...]:
        self.open[index], self.passed[index] = False, self.shared[index]
        self.look()
        counts = self.counts[:, index]
        stay = [u.path for k, n in zip(self.kinds, counts, strict=True) for u in k[n:]]
        tiny = (group.path for group in self.tiny)
        return tuple(sorted([*stay, *tiny, *self.states.tables]))


@dataclass
class _Curve:
    """What a step takes at least, as a function of its budget."""

    graph: Graph
    floor_bytes: int = 0
    lines: tuple[Line, ...] = ()
    known: list[tuple[int, float]] = field(default_factory=list)

    def at(self, room_bytes: Floats) -> Floats:
        """Return the bound at each of some budgets, ``inf`` below the floor."""
        found = np.full(room_bytes.shape, self.graph.seconds)
        for line in self.lines:
            above = self.graph.seconds + line.extra_seconds + line.slope * room_bytes
            found = np.maximum(found, above)
        for most, seconds in self.known:
            found = np.where(room_bytes <= most, np.maximum(found, seconds), found)
        return np.where(room_bytes >= self.floor_bytes, found, math.inf)


def _curve(states: MovableStates, rooms: Floats) -> _Curve:
    """Return the bound of a step, with lines that are tight near some of the budgets."""
    graph = states.step.graph
    floor = max(proven_floor(graph), states.step.floor_bytes())
    problem = flatten(graph)
    held = held_bytes(problem, range(problem.n))
    tight = np.unique(rooms[(rooms >= floor) & (rooms < held.max(initial=0))])
    near = {int(tight[int(i)]) for i in np.linspace(0, tight.size - 1, _LINES) if tight.size}
    cut = int(held.argmax())
    lines = (supporting_line(problem, room, cut) for room in sorted(near))
    return _Curve(graph, floor, tuple(line for line in lines if line is not None))


def _kinds(groups: Sequence[Movable]) -> list[list[Movable]]:
    """Group units that are alike; while there are too many kinds, join the two most alike.

    In each, those that cost least for their bytes come first, and of those that are alike the last.
    """

    def price(unit: Movable) -> tuple[float, int, int, int]:
        each = unit.seconds / max(1, unit.saved_bytes)
        return each, unit.saved_bytes, unit.workspace_bytes, unit.host_bytes

    last_first = groups[::-1]
    kinds = [list(alike) for _, alike in groupby(sorted(last_first, key=price), key=price)]
    while math.prod(len(kind) + 1 for kind in kinds) > MOST_CHOICES:
        apart = [_apart(a[-1], b[0]) for a, b in pairwise(kinds)]
        i = apart.index(min(apart))
        kinds[i : i + 2] = [kinds[i] + kinds[i + 1]]
    return kinds


def _best(kind: Sequence[Movable]) -> tuple[float, float, float, float]:
    """Return what one unit of a kind is taken for: bytes and temporaries saved, there, seconds."""
    return (
        max(unit.saved_bytes for unit in kind),
        max(unit.workspace_bytes for unit in kind),
        min(unit.host_bytes for unit in kind),
        min(unit.seconds for unit in kind),
    )


def _apart(a: Movable, b: Movable) -> float:
    """Return how different two units are, in bytes and in seconds."""

    def ratio(x: float, y: float) -> float:
        return abs(x - y) / max(abs(x), abs(y), 1e-30)

    return ratio(a.saved_bytes, b.saved_bytes) + ratio(a.seconds, b.seconds)
