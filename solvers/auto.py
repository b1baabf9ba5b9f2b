"""The workhorse, ``method="auto"``: coarse stages with lazy time cuts.

Solves the master at few cuts, relaxed and then integer, for a bound and a plan; builds an order,
repairs and prunes it, sees where it overshot, adds cuts there, and goes on until bound and cost
meet or nothing moves. Large graphs begin with relaxations alone (``relaxed``), which seldom leave
more to do. What gap is left is for the baselines and a local search. The bound holds for
every schedule whose first runs follow the graph's order. Tiny graphs are ``exact``'s. Effort is
counted, not timed, so that the answer does not depend on the machine, short of ``limits.seconds``.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from graphs import Graph
from solvers import blocks, chen_greedy, chen_sqrt, recompute_all, revolve  # noqa: F401 (register)
from solvers.base import SOLVERS, Answer, Limits, Status, register
from solvers.build import order_from_plan
from solvers.exact import MOST_OPS, exact, search_states
from solvers.least import least_order, proven_floor
from solvers.master import solve_master
from solvers.overshoot import overshoots
from solvers.polish import polish
from solvers.problem import flatten, held_bytes
from solvers.relaxed import run_relaxed
from solvers.search import Search
from solvers.starts import least_checkpointed

ROUNDS = 12
STALLS = 2
"""After so many rounds in a row that move neither bound nor cost, cuts are left alone."""
SHARE = 0.6
"""The cuts' part of the seconds; the baselines and the local search have the rest."""
WORK = 400_000
"""What one integer master may cost: see ``solve_master``; a few seconds."""
FINE = 1e-4
"""The gap worth more rounds even when the caller would take a wider one, on 1,000 ops or fewer."""
LARGE = 500
"""Above so many ops a gap that the caller accepts is not narrowed by another round of cuts."""
INTEGER = 2000
"""Above so many ops integer masters and single runs given up or added are too many to help."""
CLOSE = 1e-3
"""The gap at which more relaxations are not worth their time."""
WORTH_COMPARING = 3e-3
"""The gap above which the baselines are asked on more than ``LARGE`` ops; below, at any gap."""
BRIEF = 50_000
"""The work of the local search above ``LARGE`` ops, where it seldom helps."""
BASELINES = (
    "blocks_uniform",
    "blocks_greedy",
    "chen_sqrt",
    "chen_greedy",
    "revolve",
    "recompute_all",
)


@register("auto")
def auto(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget and a bound that meets it within ``limits.gap``.

    ``INFEASIBLE`` is proved; ``UNKNOWN`` says how small a budget is known to work. Any budget from
    ``minimum_budget`` up gets a schedule, and none that a baseline beats.
    """
    if len(graph.ops) <= MOST_OPS:
        answer = exact(graph, budget_bytes, limits)
        if answer.status is not Status.UNKNOWN:
            return answer
    deadline = time.monotonic() + limits.seconds
    search = Search(flatten(graph), budget_bytes, deadline=deadline)
    if (floor := proven_floor(graph)) > budget_bytes:
        message = f"outputs of ops that cannot run twice raise the floor to {floor} bytes"
        return Answer(Status.INFEASIBLE, None, math.inf, message)
    _bound_and_plan(search, limits, deadline)
    if search.bound == math.inf:
        return Answer(Status.INFEASIBLE, None, math.inf, "proved at the cuts that nothing fits")
    _compare(search, graph, limits, deadline)
    if search.order is None:
        least = least_order(graph, floor, deadline)
        if (peak := int(held_bytes(search.problem, least).max())) > budget_bytes:
            message = f"nothing found that fits; the least peak found is {peak} bytes"
            return Answer(Status.UNKNOWN, None, search.base + search.bound, message)
        search.offer(least)
    if search.problem.n <= LARGE:
        polish(search, target=_target(search, limits), deadline=deadline)
    elif search.problem.n <= INTEGER:
        polish(search, target=WORTH_COMPARING, work=BRIEF, deadline=deadline)
    status = Status.OPTIMAL if search.gap <= max(limits.gap, 2e-6) else Status.FEASIBLE
    return Answer(status, search.order, search.base + min(search.bound, search.extra))


def _bound_and_plan(search: Search, limits: Limits, deadline: float) -> None:
    """Solve masters: relaxed ones on large graphs, integer ones where they can do better."""
    n = search.problem.n
    if n > LARGE:
        close = min(limits.gap, CLOSE)
        run_relaxed(search, target=close, deadline=deadline, seed=limits.seed)
    left = deadline - time.monotonic()
    if n <= LARGE or (n <= INTEGER and search.gap > CLOSE and left > 0):
        run_cuts(search, replace(limits, seconds=SHARE * left))


def lower_bound(graph: Graph, budget_bytes: int, limits: Limits | None = None) -> float:
    """Return seconds that every schedule within the budget takes, ``inf`` if none can exist.

    >>> from graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> [round(lower_bound(g, budget), 3) for budget in (4, 3, 2)]
    [8.0, 9.0, inf]
    """
    if len(graph.ops) <= MOST_OPS:
        return graph.seconds + search_states(flatten(graph), budget_bytes).bound
    search = Search(flatten(graph), budget_bytes)
    if proven_floor(graph) > budget_bytes:
        return math.inf
    limits = limits or Limits()
    _bound_and_plan(search, limits, time.monotonic() + limits.seconds)
    return search.base + min(search.bound, search.extra)


def _target(search: Search, limits: Limits) -> float:
    return min(limits.gap, FINE * max(1.0, search.problem.n / 1000))


def run_cuts(search: Search, limits: Limits) -> None:
    """Alternate master and repair, with more cuts each round, until bound and cost meet."""
    problem, deadline = search.problem, time.monotonic() + limits.seconds
    search.offer(range(problem.n))
    target, stalls = _target(search, limits), 0
    cuts = [int(held_bytes(problem, range(problem.n)).argmax())] if problem.n else []
    for _ in range(ROUNDS):
        before, order = (search.bound, search.extra), None
        for relax in (True, False):
            if search.gap <= target or search.bound == math.inf:
                return
            result = solve_master(
                problem,
                search.budget,
                cuts,
                relax=relax,
                gap=target * search.base / 2,
                seconds=deadline - time.monotonic(),
                work=WORK,
                seed=limits.seed,
            )
            search.raise_bound(result.bound)
            if result.plan is not None:
                order = order_from_plan(problem, result.plan)
                search.offer(order)
        stalls = stalls + 1 if (search.bound, search.extra) == before else 0
        fresh = [] if order is None else overshoots(problem, order, search.budget, cuts)
        done = search.gap <= limits.gap and problem.n > LARGE
        if not fresh or done or stalls == STALLS or time.monotonic() > deadline:
            return
        cuts = sorted({*cuts, *fresh})


def _compare(search: Search, graph: Graph, limits: Limits, deadline: float) -> None:
    """Take the orders of the baselines in, where the gap left is worth their sweeps."""
    worth = WORTH_COMPARING if search.problem.n > LARGE else _target(search, limits)
    if search.gap <= worth or (search.order is not None and time.monotonic() > deadline):
        return
    search.offer(least_checkpointed(graph, deadline))
    for name in BASELINES:
        if time.monotonic() > deadline:
            return
        if (order := SOLVERS[name](graph, search.budget, limits).order) is not None:
            search.offer(order)
