"""The least budget known to work where values may move to the host."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from planner.graphs import Graph, Schedule
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import floor_bytes
from planner.solvers.minimum_budget import MinimumBudget
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.search.moved_values import moving
from planner.solvers.tuning import HOST_LEAST_PRECISION


def least_with_host(
    graph: Graph, tier: HostTier, known: MinimumBudget, *, deadline: float = math.inf
) -> MinimumBudget:
    """Move as much as can be moved of the orders that hold least and that run every op once.

    Args:
        graph: the step.
        tier: where values may go.
        known: the least budget of schedules that move nothing. Its floor need not hold for others:
            what remains proved is that no op can do with less than what it reads and makes.
        deadline: of ``time.monotonic``, after which no more budgets are tried.

    >>> from planner.graphs import Op, Value
    >>> from planner.solvers.minimum_budget import minimum_budget
    >>> ops = (Op("a", "f", (), (0,), recomputable=False), Op("b", "f", (), (1,)),
    ...        Op("c", "f", (1,), (2,)), Op("d", "f", (0,), (3,)))
    >>> g = Graph(ops, tuple(Value(x, 2) for x in "abcd"))
    >>> known = minimum_budget(g)
    >>> known.least_bytes, least_with_host(g, HostTier(1.0, 1.0), known).least_bytes
    (6, 4)
    """
    floor, best, schedule = floor_bytes(graph), known.least_bytes, known.schedule
    for order in (known.schedule.order, range(len(graph.ops))):
        held, moved = _least_of(graph, tier, order, (floor, best), deadline)
        if moved is not None:
            best, schedule = held, moved
    stopped = known.stopped or time.monotonic() > deadline
    return MinimumBudget(best, floor, schedule, stopped)


def _least_of(
    graph: Graph, tier: HostTier, order: Sequence[int], between: tuple[int, int], deadline: float
) -> tuple[int, Schedule | None]:
    """Halve the budgets within which an order runs with what is too much moved away."""
    floor, most = between
    low, best = floor - 1, None
    while time.monotonic() < deadline and most - low > 1 + floor // HOST_LEAST_PRECISION:
        middle = (low + most) // 2
        made = moving(HostProblem(graph, middle, tier), order, deadline=deadline)
        if made is None:
            low = middle
        else:
            most, best = int(made.trace.peak_bytes), made.schedule
    return most, best
