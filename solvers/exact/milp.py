"""The exact integer program of Checkmate, through PuLP: the oracle on small graphs.

Exact in Checkmate's class: first computations follow the graph's order, and between two of them
each op is recomputed at most once, in the graph's order. About one in a hundred tight random graphs
has a schedule outside that class that is cheaper, or is the only one that fits; so unless the
program's optimum meets a bound that holds without it, a second pass is allowed between two first
computations (``passes``). The bound and the verdict INFEASIBLE do not rest on the class: they come
from the master problem with a cut at every op.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import pulp

from planner.graphs import Graph, plain_schedule, schedule_from_order, simulate
from planner.solvers.api import Answer, Limits, Status, register
from planner.solvers.exact.checkmate import build
from planner.solvers.exact.state_search import search_states
from planner.solvers.model.master import solve_master
from planner.solvers.model.problem import flatten
from planner.solvers.tuning import (
    MILP_BOUND_FINER,
    MILP_BOUND_SHARE,
    MOST_PROGRAM_CELLS,
    SHRINKING_TRIES,
    TINY_OPS,
)


@dataclass(frozen=True, slots=True)
class _Found:
    """What one integer program gave: an order, and whether it was solved to the end."""

    order: list[int] | None
    seconds: float
    finished: bool


def solve_exactly(
    graph: Graph,
    budget_bytes: int,
    limits: Limits,
    *,
    solver: str = "HiGHS",
    passes: tuple[int, ...] = (1, 2),
) -> Answer:
    """Solve the integer program, with more passes only while optimality is not proved.

    Args:
        graph: at most some 300 ops.
        budget_bytes: a budget of at least ``floor_bytes(graph)``.
        limits: seconds for everything together; the gap at which to stop.
        solver: "HiGHS" or "CBC".
        passes: the widening classes to try in turn; ``(1,)`` is Checkmate's alone.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (0,), (2,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4), Value("c", 1)))
    >>> solve_exactly(g, 6, Limits()).schedule.order
    (0, 1, 0, 2)
    """
    n, deadline = len(graph.ops), time.monotonic() + limits.seconds
    if simulate(graph, plain := plain_schedule(graph)).peak_bytes <= budget_bytes:
        return Answer(Status.OPTIMAL, plain, graph.seconds, "milp: every op runs once")
    if n * n * passes[0] > MOST_PROGRAM_CELLS:
        message = f"milp: {n} ops are too many for the exact program; use method='auto'"
        return Answer(Status.UNKNOWN, None, message=message)
    bound = _bound(graph, budget_bytes, limits)
    if math.isinf(bound):
        message = "milp: no set of values to hold fits at every first computation"
        return Answer(Status.INFEASIBLE, None, math.inf, message)
    best = _Found(None, math.inf, finished=False)
    for count in passes:
        left = deadline - time.monotonic()
        large, met = n * n * count > MOST_PROGRAM_CELLS, best.seconds <= bound * (1 + limits.gap)
        if left <= 0 or large or met:
            break
        backend = _backend(solver, replace(limits, seconds=left), bound)
        found = _solve(graph, budget_bytes, backend, count)
        best = min(best, found, key=lambda f: f.seconds) if found.order else best
        best = _Found(best.order, best.seconds, found.finished)
    return _answer(graph, best, bound, limits)


@register("milp")
def milp(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Solve the integer program with HiGHS.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    return solve_exactly(graph, budget_bytes, limits)


@register("milp_cbc")
def milp_cbc(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Solve the same program with CBC, which PuLP carries along; the bound stays HiGHS's.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    return solve_exactly(graph, budget_bytes, limits, solver="CBC")


def _answer(graph: Graph, best: _Found, bound: float, limits: Limits) -> Answer:
    if best.order is None:
        message = (
            "milp: no schedule of its class fits, which is no proof for other schedules"
            if best.finished
            else "milp: the time limit came before a schedule that fits"
        )
        return Answer(Status.UNKNOWN, None, bound, message)
    proved = best.finished or best.seconds <= bound * (1 + limits.gap)
    status = Status.OPTIMAL if proved else Status.FEASIBLE
    return Answer.of_order(graph, status, best.order, bound, "milp: best of its class")


def _bound(graph: Graph, budget_bytes: int, limits: Limits) -> float:
    """Return the least seconds of any schedule in the given order, ``inf`` if none fits."""
    if len(graph.ops) <= TINY_OPS:
        return graph.seconds + search_states(flatten(graph), budget_bytes).bound
    master = solve_master(
        flatten(graph),
        budget_bytes,
        range(len(graph.ops)),
        gap=limits.gap / MILP_BOUND_FINER,
        seconds=limits.seconds * MILP_BOUND_SHARE,
        seed=limits.seed,
    )
    return graph.seconds + master.bound


def _solve(graph: Graph, budget_bytes: int, backend: Any, passes: int) -> _Found:
    """Solve one integer program; solvers may overstep a row by a millionth of the budget."""
    aim, deadline = budget_bytes, time.monotonic() + backend.timeLimit
    for _ in range(SHRINKING_TRIES):
        program = build(graph, aim, passes=passes)
        backend.timeLimit = max(0.1, deadline - time.monotonic())
        program.problem.solve(backend)
        state = program.problem.sol_status
        finished = state in (pulp.LpSolutionOptimal, pulp.LpSolutionInfeasible)
        if state not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return _Found(None, math.inf, finished)
        order = program.order()
        trace = simulate(graph, schedule_from_order(graph, order))
        if trace.peak_bytes <= budget_bytes:
            return _Found(order, trace.seconds, finished and aim == budget_bytes)
        aim -= trace.peak_bytes - budget_bytes
    return _Found(None, math.inf, finished=False)


def _backend(name: str, limits: Limits, bound: float) -> Any:
    """Return a PuLP solver that stops at the gap, or (HiGHS) as soon as the bound is met.

    Raises:
        ValueError: the name is neither "HiGHS" nor "CBC".
    """
    common = {"msg": False, "timeLimit": limits.seconds, "gapRel": limits.gap, "threads": 1}
    if name == "HiGHS":
        target = bound * (1 + limits.gap)
        return pulp.HiGHS(**common, random_seed=limits.seed, objective_target=target)
    if name == "CBC":
        return pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, **common)
    raise ValueError(f"unknown integer solver {name!r}; valid ones: CBC, HiGHS")
