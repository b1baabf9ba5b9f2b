"""The workhorse for first runs in the graph's order: coarse stages with time cuts.

Solves the master at few cuts, relaxed and then integer, for a bound and a plan (``time_cuts``);
builds an order, makes it fit and prunes it, sees where it overshot, adds cuts there, until bound
and cost meet or nothing moves. Large graphs begin with relaxations alone (``relaxed_masters``),
which seldom leave more to do. What gap is left is for plans from blocks (``block_plans``) or from
larger budgets (``walk_down``, ``stretches``), for masters near the best plan
(``master_neighbours``), for the baselines and a local search. Tiny graphs are ``state_search``'s.
Effort is counted, not timed, so that the answer does not depend on the machine, short of
``limits.seconds``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, Solver, Status, deadline_of
from planner.solvers.baselines.blocks import blocks_greedy, blocks_uniform
from planner.solvers.baselines.chen_greedy import chen_greedy
from planner.solvers.baselines.chen_sqrt import chen_sqrt
from planner.solvers.baselines.recompute_all import recompute_all
from planner.solvers.baselines.revolve import revolve
from planner.solvers.bounds.least_bytes import least_bytes
from planner.solvers.exact.state_search import exact, search_states
from planner.solvers.minimum_budget import least_order, proven_floor
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.beside import beside
from planner.solvers.search.block_plans import plan_blocks
from planner.solvers.search.incumbent import Search
from planner.solvers.search.initial import least_checkpointed
from planner.solvers.search.master_neighbours import improve_near
from planner.solvers.search.polish import polish
from planner.solvers.search.relaxed_masters import run_relaxed
from planner.solvers.search.stretches import improve_stretches
from planner.solvers.search.time_cuts import CutRun, fine_target, run_cuts, tighten_cuts
from planner.solvers.search.walk_down import walk_down
from planner.solvers.tuning import (
    BRIEF_POLISH_WORK,
    CLOSE_GAP,
    CUTS_SHARE,
    FITTING_SHARE,
    INTEGER_OPS,
    LARGE_OPS,
    NEAR_AGAIN,
    NEAR_PLANS_SHARE,
    TIGHT_SHARE,
    TINY_OPS,
    WORTH_BASELINES_GAP,
    WORTH_BLOCKS_GAP,
    WORTH_INTEGERS_GAP,
    WORTH_STRETCHES_GAP,
    WORTH_SWEEPS_GAP,
    WORTH_WALKING_GAP,
)

STOPPED = "stopped by the limit in seconds before the effort was spent"
BASELINES: dict[str, Solver] = {
    "blocks_uniform": blocks_uniform,
    "blocks_greedy": blocks_greedy,
    "chen_sqrt": chen_sqrt,
    "chen_greedy": chen_greedy,
    "revolve": revolve,
    "recompute_all": recompute_all,
}


def in_given_order(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule whose first runs keep the graph's order, and a bound for all of those.

    ``INFEASIBLE`` is proved; ``UNKNOWN`` says how small a budget is known to work. Any budget from
    ``minimum_budget`` up gets a schedule, and none that a baseline beats.

    Args:
        graph, budget_bytes, limits: as for ``solve``.
    """
    if len(graph.ops) <= TINY_OPS:
        answer = exact(graph, budget_bytes, limits)
        if answer.status is not Status.UNKNOWN:
            return answer
    search = Search(flatten(graph), budget_bytes, deadline=deadline_of(limits))
    if (floor := proven_floor(graph)) > budget_bytes:
        return _infeasible(f"outputs of ops that cannot run twice raise the floor to {floor} bytes")
    _look(search, graph, limits)
    if search.bound == math.inf:
        return _infeasible("proved at the cuts, or by what the end needs, that nothing fits")
    stopped = STOPPED if search.stopped else ""
    if search.order is None:
        found = f"nothing found that fits; the least peak found is {search.least} bytes"
        message = "; ".join(filter(None, (found, stopped)))
        return Answer(Status.UNKNOWN, None, search.base + search.bound, message)
    proved = search.gap <= max(limits.gap, 2e-6)  # a millionth is taken off what masters prove
    status = Status.OPTIMAL if proved else Status.FEASIBLE
    message = "" if proved else stopped
    return Answer.of_order(graph, status, search.order, search.base + search.bound, message)


def _look(search: Search, graph: Graph, limits: Limits) -> None:
    """Look for plans and bounds.

    Where relaxations leave a gap that only larger steps close, the bound is proved beside those.
    """
    cuts = _relax(search, limits)
    rounded = search.order is not None
    if not rounded and search.bound < math.inf and search.problem.n > LARGE_OPS:
        _start(search, graph)
    wide = search.bound < math.inf and search.gap > WORTH_WALKING_GAP
    if not (wide and LARGE_OPS < search.problem.n <= INTEGER_OPS):
        _leap(search, graph, limits, rounded=rounded)
        _improve(search, graph, limits, _cut(search, limits, cuts))
        return
    tight = limits.until(search.deadline, share=TIGHT_SHARE)
    with beside(search, partial(tighten_cuts, limits=tight, cuts=cuts)) as tightened:
        _leap(search, graph, limits, rounded=rounded)
    with beside(search, lambda own: tightened.result().on(own).proved()):
        _improve(search, graph, limits, _cut(search, limits, cuts, tight=False))


def _improve(search: Search, graph: Graph, limits: Limits, run: CutRun | None) -> None:
    """Improve the best plan, or find one that fits."""
    if search.bound < math.inf:
        _compare(search, graph, limits)
        if search.order is None and not search.least:
            _start(search, graph)
    if run is not None:
        improve_near(run, target=limits.gap, share=NEAR_PLANS_SHARE, seed=limits.seed)
    _polish(search, limits)
    for seed in range(limits.seed + 1, limits.seed + 1 + NEAR_AGAIN):
        if run is not None and search.gap > WORTH_INTEGERS_GAP:
            improve_near(run, target=limits.gap, share=1.0, seed=seed)


def _infeasible(message: str) -> Answer:
    return Answer(Status.INFEASIBLE, None, math.inf, message)


def _relax(search: Search, limits: Limits) -> list[int]:
    """Solve relaxed masters of a large graph; return their cuts."""
    if (n := search.problem.n) <= LARGE_OPS:
        return []
    close = min(limits.gap, CLOSE_GAP)
    enough = max(limits.gap, WORTH_INTEGERS_GAP) if n <= INTEGER_OPS else close
    return run_relaxed(
        search, target=close, enough=enough, deadline=search.deadline, seed=limits.seed
    )


def _start(search: Search, graph: Graph) -> None:
    """Offer orders that hold little, unless it is proved that none fits."""
    floor = proven_floor(graph)
    if least_bytes(search.problem, floor, deadline=search.deadline) > search.budget:
        search.raise_bound(math.inf)
        return
    for find in (
        least_checkpointed,
        partial(least_order, floor=floor, enough=search.budget),
    ):
        if search.order is None:
            order = find(graph, deadline=search.deadline)
            search.least = int(held_bytes(search.problem, order).max())
            search.offer(order)


def _leap(search: Search, graph: Graph, limits: Limits, *, rounded: bool) -> None:
    """Try plans of another kind where relaxations left the gap wide; one that is better is enough.

    Where no relaxation was ``rounded`` to a plan that fits, those of larger budgets seldom are.
    """
    if not LARGE_OPS < search.problem.n <= INTEGER_OPS:
        return
    walk, blocks = partial(_walk, search, limits), partial(_plan_blocks, search, graph, limits)
    for leap in (walk, blocks) if rounded else (blocks, walk):
        before = search.extra
        if search.bound < math.inf:
            leap()
        if search.extra < before:
            return


def _plan_blocks(search: Search, graph: Graph, limits: Limits) -> None:
    """Plan what is handed between blocks first, and improve such a plan by small steps."""
    if search.gap > WORTH_BLOCKS_GAP:
        before, target = search.extra, max(WORTH_BLOCKS_GAP, limits.gap)
        plan_blocks(search, graph, limits, target=target)
        if search.extra < before:
            polish(search, target=target, evict=False, deadline=search.deadline)


def _walk(search: Search, limits: Limits) -> None:
    """Walk plans for larger budgets down, improve a better one by small steps, then stretches of
    the best on their own: small steps take most of what walking makes run needlessly."""
    if search.gap > WORTH_WALKING_GAP:
        before = search.extra
        walk_down(search, lambda larger: _relax(larger, limits))
        if search.extra < before:
            polish(search, target=WORTH_WALKING_GAP, evict=False, deadline=search.deadline)
        improve_stretches(search, limits, target=WORTH_WALKING_GAP)


def _cut(
    search: Search, limits: Limits, cuts: Sequence[int], *, tight: bool = True
) -> CutRun | None:
    """Solve integer masters where they can do better."""
    n, left = search.problem.n, search.deadline - time.monotonic()
    if n <= LARGE_OPS or (n <= INTEGER_OPS and search.gap > limits.gap and not search.over()):
        share = FITTING_SHARE if search.order is None else CUTS_SHARE
        return run_cuts(search, replace(limits, seconds=share * left), cuts, tight=tight)
    return None


def _compare(search: Search, graph: Graph, limits: Limits) -> None:
    """Take the orders of the baselines in, where the gap left is worth their sweeps.

    Half of the time left is kept for what holds least, while nothing fits.
    """
    worth = fine_target(search, limits)
    if search.problem.n > LARGE_OPS:
        sweeps = WORTH_BASELINES_GAP if search.problem.n <= INTEGER_OPS else WORTH_SWEEPS_GAP
        worth = max(sweeps, limits.gap)
    if search.gap <= worth or search.over():
        return
    until = search.deadline
    if search.order is None:
        until -= (until - time.monotonic()) / 2
    search.offer(least_checkpointed(graph, until))
    for solver in BASELINES.values():
        until = until if search.order is None else search.deadline
        if search.over(until):
            return
        within = limits.until(until)
        if (schedule := solver(graph, search.budget, within).schedule) is not None:
            search.offer(schedule.order)


def _polish(search: Search, limits: Limits) -> None:
    """Improve the best order by small steps, less on large graphs, then stretch by stretch."""
    if search.problem.n <= LARGE_OPS:
        polish(search, target=fine_target(search, limits), deadline=search.deadline)
    elif search.problem.n <= INTEGER_OPS:
        target = max(WORTH_BASELINES_GAP, limits.gap)
        polish(search, target=target, work=BRIEF_POLISH_WORK, deadline=search.deadline)
    if search.problem.n <= INTEGER_OPS:
        improve_stretches(search, limits, target=max(WORTH_STRETCHES_GAP, limits.gap))


def lower_bound(graph: Graph, budget_bytes: int, limits: Limits | None = None) -> float:
    """Return seconds that every schedule within the budget takes, ``inf`` if none can exist.

    Args:
        graph: the step.
        budget_bytes: what a schedule may hold.
        limits: when to stop.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> [round(lower_bound(g, budget), 3) for budget in (4, 3, 2)]
    [8.0, 9.0, inf]
    """
    if len(graph.ops) <= TINY_OPS:
        return graph.seconds + search_states(flatten(graph), budget_bytes).bound
    limits = limits or Limits()
    search = Search(flatten(graph), budget_bytes, deadline=deadline_of(limits))
    if proven_floor(graph) > budget_bytes:
        return math.inf
    _cut(search, limits, _relax(search, limits))
    return search.base + search.bound
