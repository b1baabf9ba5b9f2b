"""The windows between cuts: which values first runs need from before, and what could serve them.

Knows reads and makers only; budgets and seconds are the master's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.solvers.model.problem import Problem


@dataclass(frozen=True)
class Window:
    """One cut ``t``: what first runs in its window read from before it, and what that concerns."""

    t: int
    need: frozenset[int]
    relevant: tuple[int, ...]


def windows(problem: Problem, cuts: Sequence[int], tiny: frozenset[int]) -> list[Window]:
    """Return the windows; relevant values are those that could serve the window or a later one.

    Args:
        problem: the step, flattened.
        cuts: the ops at whose first runs the windows begin.
        tiny: values that count as always held and weightless.
    """
    found: list[Window] = []
    later: set[int] = set()
    stop = problem.n
    for t in reversed(cuts):
        need = {v for j in range(t, stop) for v in problem.inputs[j] if problem.maker[v] < t}
        if stop == problem.n:
            need.update(v for v in problem.ends if problem.maker[v] < t)
        need -= tiny
        seen = need | {v for v in later if problem.maker[v] < t}
        stack = list(seen)
        while stack:
            op = problem.maker[stack.pop()]
            if not problem.recomputable[op]:
                continue
            fresh = [u for u in problem.inputs[op] if u not in seen and u not in tiny]
            seen.update(fresh)
            stack += fresh
        found.append(Window(t, frozenset(need), tuple(sorted(seen))))
        later, stop = seen, t
    return found[::-1]
