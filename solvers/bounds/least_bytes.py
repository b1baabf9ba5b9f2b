"""Bytes that every schedule holds at some moment, because of what the end needs.

Let ``H`` be any set of ops, and look at the last run of any op of ``H``: that of ``j``. From then
on no op of ``H`` runs. Take a way from an output of an op of ``H`` to a value that is needed at the
end, along values and the ops, none of ``H``, that read one and make the next. Some value of it must
be held while ``j`` runs: if none were, the last would have to be made later from the one before,
that from the one before it, and the first by its op of ``H`` itself, which runs no more. (Ways that
begin with what ``j`` makes are no such ways.) So what is held while ``j`` runs cuts ``H`` without
``j`` off from the end, and beside ``j``'s own inputs and outputs it weighs no less than a least
cut. Whatever ``H`` is, one of its ops is the last, so that every schedule holds

    min over j in H of (what j needs alone + the least cut of H without j from the end)

at some moment, in whatever order its ops run, and however often. With the ops that need most for
``H`` this counts the gradients that are there before the last of them runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection

from planner.solvers.model.linear_program import Model, minimize
from planner.solvers.model.problem import Problem
from planner.solvers.tuning import LAST_RUN_OPS, LAST_RUN_SETS, LAST_RUN_STEPS


def least_bytes(problem: Problem, known: int = 0, *, deadline: float = math.inf) -> int:
    """Return bytes that every schedule holds at some moment; what is known for very large graphs.

    Args:
        problem: the step, flattened.
        known: bytes that are known to be held at some moment; more are looked for.
        deadline: of ``time.monotonic``, after which no more sets are tried.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), workspace_bytes=5), Op("b", "f", (0,), (1,)),
    ...        Op("c", "f", (), (2,), workspace_bytes=5), Op("d", "f", (2,), (3,)))
    >>> values = tuple(Value(x, size) for x, size in zip("abcd", (4, 2, 4, 3)))
    >>> least_bytes(flatten(Graph(ops, values, frozenset({1, 3}))))
    11
    """
    if not 0 < problem.n <= LAST_RUN_OPS:
        return known
    need = [
        problem.own(o) + sum(problem.sizes[v] for v in problem.inputs[o]) for o in range(problem.n)
    ]
    ranked = sorted(range(problem.n), key=lambda o: (-need[o], o))
    best, count = known, 1
    for _ in range(LAST_RUN_STEPS):
        if time.monotonic() > deadline:
            break
        chosen = ranked[: min(count, problem.n)]
        best = max(best, _of_last_run(problem, need, chosen, best, deadline))
        if count >= min(problem.n, LAST_RUN_SETS) or need[ranked[count]] <= problem.resident_bytes:
            break
        count *= 2
    return best


def _of_last_run(
    problem: Problem, need: list[int], chosen: Collection[int], known: int, deadline: float
) -> int:
    """Return the bound of one set of ops, or no more than is known already."""
    least = -1
    for j in sorted(chosen, key=lambda o: need[o]):
        if 0 <= least <= need[j]:
            break
        if time.monotonic() > deadline:
            return known
        found = need[j] + _least_cut(problem, set(chosen), j)
        least = found if least < 0 else min(least, found)
        if least <= known:
            break
    return least


def _least_cut(problem: Problem, chosen: set[int], last: int) -> int:
    """Return the least bytes of values that part the other ops from the end, or a little less.

    A linear program: what a chosen op makes is out of reach of the end unless it is cut, and so is
    in turn what is made of it. Its multipliers prove the bound.
    """
    free = {*problem.inputs[last], *problem.outputs[last]}
    unit, model = float(max(1, *problem.sizes)), Model()
    before, after = dict[int, int](), dict[int, int]()
    for o in range(problem.n):
        for v in problem.outputs[o]:
            cut = model.column(0.0 if v in free else problem.sizes[v] / unit)
            before[v] = model.column(0.0, lower=float(o in chosen and o != last))
            after[v] = model.column(0.0)
            model.row([after[v], before[v], cut], [1.0, -1.0, 1.0], low=0.0)
            for u in () if o in chosen else problem.inputs[o]:
                model.row([before[v], after[u]], [1.0, -1.0], low=0.0)
    for v in problem.ends:
        model.upper[after[v]] = 0.0
    return math.ceil(minimize(model, relax=True).bound * unit * (1 - 1e-12))
