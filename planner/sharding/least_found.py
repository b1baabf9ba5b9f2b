"""The plan that holds least over all configurations, where none was found to fit.

A search leaves out what cannot be the fastest, and prices no more than fixed recipes of what cannot
fit. Here each configuration that may hold less than all others is opened, and the solver asked for
its least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.plan.configuration import Configuration
from planner.sharding.pricing import Needs, Planned, keeping_gathered, peak_of, price
from planner.sharding.space import Outcome, SearchResult, Space, holds_least
from planner.sharding.too_full import alike
from planner.solvers import Limits
from planner.solvers.minimum_budget import minimum_budget, proven_floor


@dataclass(frozen=True)
class Least:
    """A search after the plan that holds least, and what every plan holds.

    ``finished`` says that everything was looked at that may hold less.
    """

    found: SearchResult
    floor_bytes: int
    finished: bool


def least_found(
    space: Space,
    found: SearchResult,
    budget_bytes: int,
    *,
    needs: Needs = peak_of,
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Least:
    """Look for a plan that holds less than the closest; if it fits, it is the best of the result.

    Args:
        space: what there is to choose from.
        found: by a search in which nothing fits.
        budget_bytes: of each rank.
        needs: how much of it a plan takes, no less than its tensors.
        limits: half of whose seconds may be used.
        tell: gets a sentence of what is done next.
    """
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds / 2
    closest, best, floors, finished = found.closest, found.best, list[int](), True
    for nth, c in enumerate(_in_order(space, found)):
        floors.append(space.least_bytes(c))
        left = deadline - time.monotonic()
        if floors[-1] >= closest.peak_bytes or space.impossible(c):
            continue
        if nth and left <= 0:
            finished = False
            continue
        tell(f"looking for the least of {c}")
        within = replace(limits, seconds=max(1.0, left))
        floors[-1], planned = _least(space, c, closest.peak_bytes, within)
        for one in planned:
            closest = min((closest, one), key=peak_of)
            if needs(one) <= budget_bytes and (best is None or one.seconds < best.seconds):
                best = one
    floor = min((*floors, closest.peak_bytes))
    outcomes = tuple(_with(outcome, best, closest) for outcome in found.outcomes)
    return Least(replace(found, best=best, closest=closest, outcomes=outcomes), floor, finished)


def _least(
    space: Space, c: Configuration, below_bytes: int, limits: Limits
) -> tuple[int, list[Planned]]:
    """Return what a configuration holds at least, and its least plans if one may be below.

    What runs may hold more than the order that is asked for: a weight that is gathered again is
    fetched one unit ahead. So the least with weights gathered once is looked at, too. What ranks
    that do not divide its parameters pad is taken off the first: over fewer ranks there may be
    none.
    """
    step, deadline = space.open(c), time.monotonic() + limits.seconds
    if step.host_bytes > space.host_bytes:
        return below_bytes, []
    floor = max(proven_floor(step.graph), step.floor_bytes())
    if floor >= below_bytes:
        return floor - step.padding_bytes, []
    least = minimum_budget(step.graph, limits)
    planned = [price(c, step, least.schedule.order)]
    if planned[0].peak_bytes > least.least_bytes:
        once = minimum_budget(keeping_gathered(step.graph), limits.until(deadline))
        planned.append(price(c, step, once.schedule.order))
    return max(floor, least.floor_bytes) - step.padding_bytes, planned


def _in_order(space: Space, found: SearchResult) -> list[Configuration]:
    """Return what may hold least: the closest first, then by what is known of each."""
    seen = {o.configuration: o.peak_bytes for o in found.outcomes}
    own = found.closest.configuration

    def known(c: Configuration) -> tuple[bool, int, tuple[int, ...]]:
        return c != own, seen.get(c) or space.least_bytes(c), holds_least(c)

    return sorted(dict.fromkeys((own, *_hold_least(found))), key=known)


def _hold_least(found: SearchResult) -> Iterator[Configuration]:
    """Yield of configurations that share all else those of the most shards and fewest samples.

    All samples at once are among them: gradients are then not added up aside.
    """
    groups: dict[tuple[object, ...], list[Configuration]] = {}
    for outcome in found.outcomes:
        if not outcome.impossible:
            groups.setdefault(alike(outcome.configuration), []).append(outcome.configuration)
    for among in groups.values():
        yield from dict.fromkeys((
            min(among, key=holds_least),
            min(among, key=lambda c: (c.accumulation, holds_least(c))),
        ))  # fmt: skip


def _with(outcome: Outcome, best: Planned | None, closest: Planned) -> Outcome:
    """Return an outcome with what is known now of its configuration."""
    if best is not None and best.configuration == outcome.configuration:
        return replace(outcome, seconds=best.seconds, peak_bytes=best.peak_bytes)
    if closest.configuration == outcome.configuration:
        return replace(outcome, peak_bytes=closest.peak_bytes)
    return outcome
