"""The workhorse, ``method="auto"``: coarse stages with lazy time cuts.

Solves the master at few cuts for a bound and a plan, builds an order, repairs and prunes it, judges
where it overshot, adds cuts there, and goes on until bound and cost meet. Exact for schedules whose
first runs follow the graph's order; the bound holds for that class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphs import Graph
from solvers.base import Answer, Limits, Status, register
from solvers.build import order_from_plan
from solvers.master import solve_master
from solvers.problem import Problem, flatten, held_bytes
from solvers.prune import prune
from solvers.repair import fit

ROUNDS = 16


@dataclass
class _Search:
    """What is known so far: the best order that fits, its extra seconds, the proven bound."""

    problem: Problem
    budget: int
    order: list[int] | None = None
    extra: float = math.inf
    bound: float = 0.0
    base: float = field(init=False)

    def __post_init__(self) -> None:
        self.base = sum(self.problem.seconds)

    def offer(self, order: Sequence[int] | None) -> None:
        """Take an order that may overshoot: repair it, prune it, keep it if it is the best."""
        if order is None:
            return
        fitted = list(order)
        if held_bytes(self.problem, fitted).max(initial=0) > self.budget:
            repaired = fit(self.problem, fitted, self.budget)
            if repaired is None:
                return
            fitted = repaired
        fitted = prune(self.problem, fitted, self.budget)
        extra = self.problem.order_seconds(fitted) - self.base
        if extra < self.extra:
            self.order, self.extra = fitted, max(0.0, extra)

    @property
    def gap(self) -> float:
        """The distance of cost and bound as a fraction of the step."""
        return (self.extra - self.bound) / self.base if self.base else 0.0


@register("auto")
def auto(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Find a schedule within the budget and a bound that meets it within ``limits.gap``."""
    problem = flatten(graph)
    search = _Search(problem, budget_bytes)
    run_cuts(search, limits)
    base = search.base
    if search.bound == math.inf:
        return Answer(Status.INFEASIBLE, None, math.inf, "no schedule fits: proved by the master")
    if search.order is None:
        return Answer(Status.UNKNOWN, None, base + search.bound, "nothing found that fits")
    status = Status.OPTIMAL if search.gap <= limits.gap else Status.FEASIBLE
    return Answer(status, search.order, base + min(search.bound, search.extra))


def run_cuts(search: _Search, limits: Limits, *, target: float = 1e-4) -> None:
    """Alternate master and repair until the gap is at most the target."""
    problem, started = search.problem, time.monotonic()
    natural = range(problem.n)
    search.offer(natural)
    held = held_bytes(problem, natural)
    cuts = [int(held.argmax())] if problem.n else []
    for _ in range(ROUNDS):
        left = limits.seconds - (time.monotonic() - started)
        if search.gap <= target or left <= 0:
            return
        result = solve_master(problem, search.budget, cuts, seconds=left, seed=limits.seed)
        search.bound = max(search.bound, result.bound)
        if result.plan is None:
            return
        order = order_from_plan(problem, result.plan)
        held = held_bytes(problem, order)
        search.offer(order)
        fresh = new_cuts(order, held, search.budget, cuts, n=problem.n)
        if not fresh:
            return
        cuts = sorted({*cuts, *fresh})


def new_cuts(
    order: Sequence[int],
    held: NDArray[np.int64],
    budget: int,
    cuts: Sequence[int],
    *,
    n: int,
    most: int = 3,
) -> list[int]:
    """Return the worst overshooting steps, each a little away from the cuts there are."""
    over = np.flatnonzero(held > budget)
    seen: set[int] = set()
    bases: list[int] = []
    current = -1
    for op in order:
        if op not in seen:
            seen.add(op)
            current = op
            bases.append(op)
        else:
            bases.append(min(current + 1, n - 1))
    ranked = sorted(over.tolist(), key=lambda i: (-held[i], i))
    found: list[int] = []
    apart = max(1, n // 100)
    for i in ranked:
        t = bases[i]
        if t not in cuts and all(abs(t - u) > apart for u in found):
            found.append(t)
            if len(found) == most:
                break
    return found
