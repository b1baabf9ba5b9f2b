"""What the heuristics that people use attain: for each family the budgets and times it offers.

A family is a set of orders, one for every setting of its dials. Most families do not depend on the
budget: trying every order once gives what the family can do at all budgets. The others are asked at
some budgets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from planner.graphs import Graph, Schedule, schedule_from_order, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.solvers.api import Limits, deadline_of, solve
from planner.solvers.baselines import blocks, checkpoint, chen_greedy, chen_sqrt
from planner.solvers.baselines.moved_by_hand import BY_HAND, admitted
from planner.solvers.model.order_from_kept import order_from_kept
from planner.solvers.model.problem import flatten, held_bytes

MEASURED = ("revolve", "lp_rounding")
"""Families whose orders depend on the budget."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A schedule of a family: what it holds at most, and how long it takes.

    ``schedule`` is of the graph that it was judged on, ``None`` where it was not kept.
    """

    peak_bytes: int
    seconds: float
    schedule: Schedule | None = field(default=None, compare=False, repr=False)


def _blocks(graph: Graph) -> Iterator[list[int]]:
    found = blocks.find_blocks(graph)
    return blocks.uniform_orders(graph, found) if found else iter(())


def _checkpoints(graph: Graph) -> Iterator[list[int]]:
    found = blocks.find_blocks(graph)
    return checkpoint.orders(graph, found) if found else iter(())


FAMILIES: dict[str, Callable[[Graph], Iterable[list[int]]]] = {
    "chen_sqrt": chen_sqrt.orders,
    "chen_greedy": chen_greedy.orders,
    "blocks_uniform": _blocks,
    "recompute_all": lambda graph: [order_from_kept(graph, frozenset())],
}

RUN_BY_TORCH: dict[str, Callable[[Graph], Iterable[list[int]]]] = {"checkpoint": _checkpoints}
"""Families that people use without a plan."""


def rivals(
    graph: Graph,
    budgets: Sequence[int],
    limits: Limits | None = None,
    *,
    eager: Graph | None = None,
    host: HostTier | None = None,
) -> dict[str, tuple[Mark, ...]]:
    """Return the best schedules of every family, by ascending peak; ``budgets`` to ask some at.

    Args:
        graph: the step.
        budgets: in bytes.
        limits: whose seconds are for all families together; one that they cut off offers what was
            tried of it until then.
        eager: the step as torch runs it itself, on which ``RUN_BY_TORCH`` are judged, and those
            of ``moved_by_hand``.
        host: where values may go; without it nobody moves any.

    >>> from planner.graphs import Op, Phase, Value
    >>> ops = (Op("f", "f", (), (0,), 1.0), Op("loss", "g", (0,), (1,), 1.0),
    ...        Op("b", "b", (0, 1), (2,), 1.0, phase=Phase.BACKWARD))
    >>> g = Graph(ops, tuple(Value(n, 1) for n in "xlg"))
    >>> rivals(g, [])["chen_sqrt"]
    (Mark(peak_bytes=3, seconds=3.0),)
    """
    limits = limits or Limits()
    until = deadline_of(limits)
    found = {name: _front(graph, orders(graph), until) for name, orders in FAMILIES.items()}
    for nth, name in enumerate(MEASURED):
        share = limits.until(until, share=1 / (len(MEASURED) - nth))
        found[name] = _front(graph, _asked(graph, name, budgets, share))
    found |= without_a_plan(graph if eager is None else eager, host)
    return {name: marks for name, marks in found.items() if marks}


def without_a_plan(graph: Graph, host: HostTier | None) -> dict[str, tuple[Mark, ...]]:
    """Return the best schedules of the families that people use without a plan.

    Args:
        graph: the step that they are judged on.
        host: where values may go; without it nobody moves any.

    >>> from planner.graphs import Op
    >>> without_a_plan(Graph((Op("f", "f", (), ()),), ()), None)
    {'checkpoint': ()}
    """
    found = {name: _front(graph, made(graph)) for name, made in RUN_BY_TORCH.items()}
    if host is not None:
        for name in BY_HAND:
            found[name] = _unbeaten(Mark(*moved) for moved in admitted(graph, name, host))
    return found


def _unbeaten(marks: Iterable[Mark]) -> tuple[Mark, ...]:
    found: list[Mark] = []
    for mark in sorted(marks):
        if not found or mark.seconds < found[-1].seconds:
            found.append(mark)
    return tuple(found)


def _asked(graph: Graph, name: str, budgets: Sequence[int], limits: Limits) -> Iterator[list[int]]:
    until = deadline_of(limits)
    for nth, budget in enumerate(budgets):
        share = limits.until(until, share=1 / (len(budgets) - nth))
        schedule = solve(graph, budget, method=name, limits=share).schedule
        if schedule is not None:
            yield list(schedule.order)


def _front(
    graph: Graph, orders: Iterable[Sequence[int]], until: float = math.inf
) -> tuple[Mark, ...]:
    """Return what no other order tried of the family beats in both bytes and seconds."""
    problem = flatten(graph)
    tried = sorted(
        (int(held_bytes(problem, order).max()), problem.order_seconds(order), list(order))
        for order in takewhile(lambda _: time.monotonic() < until, orders)
    )
    found: list[Mark] = []
    for _, seconds, order in tried:
        if not found or seconds < found[-1].seconds:
            schedule = schedule_from_order(graph, order)
            trace = simulate(graph, schedule)
            found.append(Mark(trace.peak_bytes, trace.seconds, schedule))
    return tuple(found)
