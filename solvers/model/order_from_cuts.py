"""From a plan at the cuts to an order of ops.

Knows when to recompute what a plan drops: as late as the first reader in its window allows, once a
window. What overshoots a budget is for ``search.evict``.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.solvers.model.master_points import CutPlan
from planner.solvers.model.problem import Problem


def order_from_plan(
    problem: Problem, plan: CutPlan, tiny: frozenset[int] = frozenset()
) -> list[int]:
    """Return an order that holds at each cut what the plan says, and recomputes the rest late.

    Args:
        problem: the step, flattened.
        plan: what to hold at each cut.
        tiny: values that count as always held and weightless.
    """
    n = problem.n
    first = plan.cuts[0] if plan.cuts else n
    order = list(range(first))
    for k, t in enumerate(plan.cuts):
        stop = plan.cuts[k + 1] if k + 1 < len(plan.cuts) else n
        carried = plan.keep[k + 1] if k + 1 < len(plan.cuts) else frozenset(problem.ends)
        due = _due(problem, t, stop, plan.keep[k] | tiny, carried)
        late: dict[int, list[int]] = {}
        for op in sorted(due):
            late.setdefault(due[op], []).append(op)
        for j in range(t, stop):
            order += [*late.get(j, ()), j]
        order += late.get(stop, ())
    return order


def _due(
    problem: Problem, t: int, stop: int, held: Iterable[int], carried: Iterable[int]
) -> dict[int, int]:
    """Return the ops to run again in window ``[t, stop)``, each with the op it must precede.

    ``stop`` itself stands for the next cut.
    """
    held, maker = set(held), problem.maker
    due: dict[int, int] = {}
    wanted: list[tuple[int, int]] = [
        (j, v) for j in range(t, stop) for v in problem.inputs[j] if maker[v] < t
    ]
    wanted += [(stop, v) for v in sorted(carried) if maker[v] < t]
    for j, v in wanted:
        stack = [v]
        while stack:
            u = stack.pop()
            op = maker[u]
            if u in held or op in due or not problem.recomputable[op]:
                continue
            due[op] = j
            stack += problem.inputs[op]
    return due
