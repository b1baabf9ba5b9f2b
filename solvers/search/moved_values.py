"""What should be away: for an order that holds too much, values that leave it within the budget.

A byte on its way costs the same whatever it is of, so the choice is by time: first what has longest
to leave before it is in the way, and longest to come back after.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.graphs.host_memory import host_layout
from planner.solvers.model.gaps import Gap, gaps_of
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.search.transfers import Moved, PlacedCopies, begin_seconds, placed

Rank = Callable[[Gap, int, NDArray[np.float64]], tuple[float, ...]]
"""Of a gap, for the position that holds most and the times at which positions begin; the least of
them is chosen first."""


def _slack(gap: Gap, worst: int, begins: NDArray[np.float64]) -> tuple[float, ...]:
    early = begins[worst] - begins[gap.made + 1]
    late = begins[gap.before] - begins[worst]
    return (-float(min(early, late)), float(gap.after))


def _earliest(gap: Gap, worst: int, begins: NDArray[np.float64]) -> tuple[float, ...]:
    del worst, begins
    return (float(gap.made), -float(gap.before))


def _longest(gap: Gap, worst: int, begins: NDArray[np.float64]) -> tuple[float, ...]:
    del worst
    return (-float(begins[gap.before] - begins[gap.after + 1]),)


RANKS: tuple[Rank, ...] = (_slack, _earliest, _longest)


def moving(
    problem: HostProblem,
    order: Sequence[int],
    ranks: Sequence[Rank] = RANKS,
    *,
    deadline: float = math.inf,
    below: float = math.inf,
) -> Moved | None:
    """Return the quickest schedule found that runs an order within the budget by moving values.

    Args:
        problem: the step, the budget and the host.
        order: the ops to run, repetitions included.
        ranks: by which values are chosen; the first is the best in most cases.
        deadline: of ``time.monotonic``, after which no more choices are tried.
        below: seconds; what takes as long or longer is not returned.
    """
    found: list[PlacedCopies] = []
    candidates = gaps_of(problem.flat, order, problem.movable)
    for rank in ranks:
        if time.monotonic() > deadline:
            break
        chosen = _chosen(problem, order, candidates, rank)
        made = None if chosen is None else placed(problem, order, chosen)
        if isinstance(made, PlacedCopies) and made.seconds < below:
            found.append(made)
    for made in sorted(found, key=lambda made: made.seconds):
        moved = made.moved(problem)
        fits = moved.trace.peak_bytes <= problem.budget_bytes
        if fits and problem.tier.admits(host_layout(problem.graph, moved.schedule).size_bytes):
            return moved
    return None


def _chosen(
    problem: HostProblem, order: Sequence[int], candidates: Sequence[Gap], rank: Rank
) -> list[Gap] | None:
    """Return gaps in which what is away leaves the rest within the budget, ``None`` if none do."""
    begins, budget = begin_seconds(problem.flat, order), problem.budget_bytes
    held = held_bytes(problem.flat, order)
    left, chosen = set(candidates), list[Gap]()
    while held.max(initial=0) > budget:
        worst = int(held.argmax())
        across = [g for g in left if g.after < worst < g.before]
        for gap in sorted(across, key=lambda g: (*rank(g, worst, begins), g)):
            if held[worst] <= budget:
                break
            held[gap.after + 1 : gap.before] -= problem.flat.sizes[gap.value]
            chosen.append(gap)
            left.discard(gap)
        if held[worst] > budget:
            return None
    return _needed(problem.flat, held, chosen, budget)


def _needed(
    problem: Problem, held: NDArray[np.int64], chosen: Sequence[Gap], budget: int
) -> list[Gap]:
    """Leave out what need not be away, what was chosen last first."""
    kept: list[Gap] = []
    for gap in reversed(chosen):
        size = problem.sizes[gap.value]
        if held[gap.after + 1 : gap.before].max() + size <= budget:
            held[gap.after + 1 : gap.before] += size
        else:
            kept.append(gap)
    return kept
