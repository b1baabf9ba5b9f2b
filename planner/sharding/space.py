"""What a search over configurations is given, and what it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.plan.configuration import Configuration
from planner.plan.time_parts import Spent
from planner.sharding.pricing import CanRealize, Needs, Planned, peak_of
from planner.sharding.step_graph.movable import MovableStates


@dataclass(frozen=True)
class Space:
    """The configurations, a bound on forward and backward of a whole step, and how to open one.

    What the optimizer does must not depend on the micro-batch. What a step holds must not fall with
    larger micro-batches, gradients that are accumulated aside, nor with smaller groups of ranks.
    ``quick_seconds`` is a bound that takes no capture; what it rules out is never captured.
    ``impossible`` says why a configuration cannot be captured, if it cannot. ``holds`` is what a
    plan holds as it really runs, no less than its tensors. ``least_bytes`` are held by every step,
    and take no capture to know. ``host_bytes`` are what a rank may keep on its host, ``movable``
    the states of a configuration without any there that may be there one by one, if some may.
    """

    configurations: tuple[Configuration, ...]
    floor_seconds: Callable[[Configuration], float]
    open: Callable[[Configuration], CanRealize]
    quick_seconds: Callable[[Configuration], float] = lambda c: 0.0
    impossible: Callable[[Configuration], str] = lambda c: ""
    holds: Needs = peak_of
    least_bytes: Callable[[Configuration], int] = lambda c: 0
    host_bytes: float = math.inf
    movable: Callable[[Configuration], MovableStates | None] = lambda c: None


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


def in_groups(configurations: Sequence[Configuration]) -> list[list[Configuration]]:
    """Group configurations in the order in which they are looked at.

    First those with whole layers; then the others by degree, micro-batch by micro-batch: what is
    known of the ones before may spare captures of the later ones.
    """
    found: dict[tuple[int, ...], list[Configuration]] = {}
    for c in sorted(configurations, key=holds_least):
        parted = c.tensor_ranks > 1
        key = holds_least(c)[:3] if parted else ()
        found.setdefault(key, []).append(c)
    return list(found.values())


def holds_least(c: Configuration) -> tuple[int, ...]:
    """Order configurations: whole layers first, then by what holds less."""
    return (c.tensor_ranks, not c.sequence_parallel, c.micro_batch, -c.shard_ranks)
