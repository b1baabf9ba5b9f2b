"""A search over configurations within what is kept free for an allocator and NCCL."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.request import Request
from planner.sharding.least_found import Least, least_found
from planner.sharding.margin import Margin, margin_of, widened
from planner.sharding.pricing import Needs, Planned
from planner.sharding.search import explore
from planner.sharding.space import SearchResult, Space


def explored(
    request: Request, space: Space, budget_bytes: int, below_seconds: float = math.inf
) -> tuple[SearchResult, Margin]:
    """Search within what a margin leaves of the budget, for plans its allocator has room for.

    Args:
        request: what is planned.
        space: its configurations.
        budget_bytes: of each rank.
        below_seconds: a plan is of use only if it takes less.
    """
    room = _Room(request, space, margin_of(request, budget_bytes))
    found = explore(
        space,
        budget_bytes - room.kept.size_bytes,
        needs=room.needs(budget_bytes),
        below_seconds=below_seconds,
        method=request.method,
        limits=request.limits,
        tell=request.tell,
    )
    return found, room.widened(found.best or found.closest)


def lowered(
    request: Request, space: Space, found: SearchResult, budget_bytes: int
) -> tuple[Least, Margin]:
    """Look for what holds least where a search found nothing that fits; it may fit after all.

    Args:
        request: what is planned.
        space: its configurations.
        found: by the search.
        budget_bytes: of each rank.
    """
    room = _Room(request, space, margin_of(request, budget_bytes))
    least = least_found(
        space,
        found,
        budget_bytes - room.kept.size_bytes,
        needs=room.needs(budget_bytes),
        limits=request.limits,
        tell=request.tell,
    )
    return least, room.widened(least.found.best or least.found.closest)


@dataclass(frozen=True)
class _Room:
    """What is kept free for the allocator and NCCL before a plan is known, and once it is."""

    request: Request
    space: Space
    kept: Margin

    def widened(self, planned: Planned) -> Margin:
        return widened(self.kept, self.request, planned.graph, planned.schedule)

    def needs(self, budget_bytes: int) -> Needs:
        room = budget_bytes - self.kept.size_bytes

        def of(planned: Planned) -> int:
            if planned.peak_bytes > room:
                return planned.peak_bytes  # too much anyway: no compiler is asked
            lost = self.widened(planned).size_bytes - self.kept.size_bytes
            return self.space.holds(planned) + lost

        return of
