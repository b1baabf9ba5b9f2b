"""The least budget: the smallest known to work, with a schedule, and a floor that is proven.

Knows how to try ever larger budgets from the floor up. That nothing between floor and least works
is proven for tiny graphs only: the question is PSPACE-hard even where recomputing costs nothing
(pebbling).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from planner.graphs import Graph, Schedule, schedule_from_order
from planner.solvers.api import Limits, deadline_of, floor_bytes
from planner.solvers.bounds.least_bytes import least_bytes
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import solve_master
from planner.solvers.model.order_from_cuts import order_from_plan
from planner.solvers.model.overshoot import overshoots
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.search.block_plans import plan_blocks
from planner.solvers.search.evict import fit_any
from planner.solvers.search.incumbent import Search
from planner.solvers.search.initial import least_checkpointed
from planner.solvers.search.time_cuts import run_cuts
from planner.solvers.tuning import (
    ANY_GAP,
    GUIDED_OPS,
    GUIDED_ROUNDS,
    GUIDED_WORK,
    INTEGER_OPS,
    LEAST_CUTS_OPS,
    LEAST_FAILURES,
    LEAST_FIRST_STEP,
    LEAST_PRECISION,
    LEAST_STEPS,
    LEAST_STRETCH_OPS,
    PATIENCES,
    TINY_OPS,
)


@dataclass(frozen=True)
class MinimumBudget:
    """``schedule`` attains ``least_bytes``; no schedule needs less than ``floor_bytes``.

    ``stopped`` says that the limit in seconds ended the search: more time may find less.
    """

    least_bytes: int
    floor_bytes: int
    schedule: Schedule
    stopped: bool = False


def minimum_budget(
    graph: Graph, limits: Limits | None = None, *, thorough: bool = True
) -> MinimumBudget:
    """Return the least budget found to work and the proven floor.

    Args:
        graph: the step.
        limits: the seconds that the search may take.
        thorough: whether plans from blocks are looked for, which may take most of them.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (1,), (2,)),
    ...        Op("d", "f", (0, 2), (3,)))
    >>> g = Graph(ops, tuple(Value(x, 1) for x in "abcd"))
    >>> found = minimum_budget(g)
    >>> found.least_bytes, found.floor_bytes
    (3, 3)
    """
    problem = flatten(graph)
    deadline = deadline_of(limits or Limits())
    floor = least_bytes(problem, proven_floor(graph), deadline=deadline)
    order = least_order(graph, floor, deadline, thorough=thorough)
    least = int(held_bytes(problem, order).max(initial=graph.resident_bytes))
    stopped = floor < least and time.monotonic() > deadline
    if problem.n <= TINY_OPS:
        floor, order = proven_least(problem, floor, order)
        least = int(held_bytes(problem, order).max(initial=graph.resident_bytes))
    return MinimumBudget(least, floor, schedule_from_order(graph, order), stopped)


def proven_floor(graph: Graph) -> int:
    """Return bytes that every schedule in the graph's order holds at some moment.

    Each op needs its own; and while it first runs, what cannot be made again is live if a later
    op reads it.
    """
    problem = flatten(graph)
    floor, forced = floor_bytes(graph), set[int]()
    for t in range(problem.n):
        forced = {v for v in forced if problem.uses[v][-1] >= t}
        held = sum(problem.sizes[v] for v in forced.union(problem.inputs[t]))
        floor = max(floor, problem.own(t) + held)
        if not problem.recomputable[t]:
            forced.update(v for v in problem.outputs[t] if problem.uses[v])
    return floor


def proven_least(problem: Problem, floor: int, order: list[int]) -> tuple[int, list[int]]:
    """Return for a tiny problem the least budget that is not refuted, and the order found.

    Args:
        problem: the step, flattened.
        floor: the least budget that is not refuted.
        order: the ops to run, repetitions included.
    """
    top = int(held_bytes(problem, order).max(initial=floor))
    while floor < top:
        middle = (floor + top) // 2
        found = search_states(problem, middle)
        if found.order is not None:
            order, top = found.order, int(held_bytes(problem, found.order).max())
        elif found.finished:
            floor = middle + 1
        else:
            break
    return floor, order


def least_order(
    graph: Graph,
    floor: int,
    deadline: float = math.inf,
    *,
    enough: int = 0,
    thorough: bool = True,
) -> list[int]:
    """Return the order of least peak found, trying budgets from the floor up, then closing in.

    Args:
        graph: the step.
        floor: the least budget that is not refuted.
        deadline: of ``time.monotonic``.
        enough: a peak that is low enough, in bytes.
        thorough: whether plans from blocks are looked for.
    """
    problem = flatten(graph)
    start = least_checkpointed(graph, deadline)
    starts = [start] if start == list(range(problem.n)) else [list(range(problem.n)), start]
    best = start
    top = int(held_bytes(problem, best).max(initial=floor))
    if floor < enough < top and (order := try_budget(problem, enough, starts, deadline)):
        return order
    low, step = floor - 1, max(1, (top - floor) // LEAST_FIRST_STEP)
    trial = floor
    while enough < top and trial < top and time.monotonic() < deadline:
        if (order := try_budget(problem, trial, starts, deadline)) is not None:
            best, top = order, int(held_bytes(problem, order).max())
            break
        low, trial, step = trial, trial + step, 2 * step
    tolerance = floor // LEAST_PRECISION
    while enough < top and top - low > 1 + tolerance and time.monotonic() < deadline:
        middle = (low + top) // 2
        if (order := try_budget(problem, middle, starts, deadline)) is not None:
            best, top = order, int(held_bytes(problem, order).max())
        else:
            low = middle
    lowered = thorough and TINY_OPS < problem.n <= INTEGER_OPS
    return _lowered(graph, floor, best, deadline, enough) if lowered else best


def _lowered(graph: Graph, floor: int, best: list[int], deadline: float, enough: int) -> list[int]:
    """Return an order that may peak lower, by plans from blocks and, on small graphs, by masters.

    Steps down are longer as long as they succeed, then halved. Those of small graphs
    are halved from the beginning: what masters find at one budget they may miss at a larger one.
    """
    problem = flatten(graph)
    small = problem.n <= LEAST_CUTS_OPS
    low, top, failures = floor - 1, int(held_bytes(problem, best).max()), 0
    step, most = (top - low) // LEAST_STEPS, LEAST_FAILURES * (1 + small)
    while failures < most and top > enough and top - low > 1 + floor // LEAST_PRECISION:
        halved = small or failures > 0
        trial = (low + top) // 2 if halved else max(floor, top - step)
        search = Search(problem, trial, deadline=deadline)
        plan_blocks(
            search,
            graph,
            Limits(gap=ANY_GAP),
            target=ANY_GAP,
            together=(1,),
            most_ops=LEAST_STRETCH_OPS,
        )
        if search.order is None and small:
            left = Limits(gap=ANY_GAP).until(deadline)
            run_cuts(search, left, most_work=GUIDED_WORK, tight=False)
        if search.over():
            return search.order or best
        if search.order is None:
            low, failures = trial, failures + 1
        else:
            best, top = search.order, int(held_bytes(problem, search.order).max())
            step *= 2
    return best


def try_budget(
    problem: Problem, budget: int, starts: Sequence[list[int]], deadline: float
) -> list[int] | None:
    """Return an order that fits a budget: one of the starts with evictions, or a master's plan.

    Args:
        problem: the step, flattened.
        budget: in bytes.
        starts: orders to evict from.
        deadline: of ``time.monotonic``.
    """
    patiences = PATIENCES if problem.n <= GUIDED_OPS else PATIENCES[:1]
    fitted = fit_any(problem, starts, budget, patiences=patiences, deadline=deadline)
    if fitted is not None:
        return fitted
    return guided(problem, budget, deadline) if problem.n <= GUIDED_OPS else None


def guided(problem: Problem, budget: int, deadline: float) -> list[int] | None:
    """Return an order that fits a budget: a master's plan with evictions, and more cuts each round.

    Args:
        problem: the step, flattened.
        budget: in bytes.
        deadline: of ``time.monotonic``.
    """
    cuts = [int(held_bytes(problem, range(problem.n)).argmax())]
    for _ in range(GUIDED_ROUNDS):
        plan = solve_master(
            problem, budget, cuts, relax=True, seconds=deadline - time.monotonic()
        ).plan
        if plan is None:
            return None
        made = order_from_plan(problem, plan)
        if (fitted := fit_any(problem, [made], budget, deadline=deadline)) is not None:
            return fitted
        cuts = sorted({*cuts, *overshoots(problem, made, budget, cuts)})
    return None
