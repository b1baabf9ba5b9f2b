"""A lower bound for steps that may keep, recompute or move each value: one linear program.

Time is cut where ops first run, in the graph's order. Let ``x_j >= 0`` be the seconds of the
j-th stretch between two such moments beyond those of the ops that first run in it: repeated
runs and waiting. A step takes the time of running every op once and the sum of the x, which is
minimized.

At the first run of a *cut* ``t`` look at every value v made before it that a later op reads, or
that is needed to make such a value again. Let ``d_v`` be the first op after t, in the graph's
order, that reads v (the end of the step if none does); before that op runs v must be there:

- held at t, ``s_v = 1``: its bytes are on the device while t runs, copies under way counted, since
  those are held until they are waited for;
- or not, and then the first thing that brings it back before ``d_v`` is a repeated run, ``r_v =
  1``, or a copy from the host that begins after t, ``f_v = 1``.

The rows, each true of every schedule that ``graphs.simulate`` accepts:

1. need: ``s_v + r_v + f_v >= 1`` for what a later op reads or the caller holds at the end; what t
   itself reads has ``s_v = 1``.
2. chain: ``r_v <= s_u + r_u + f_u`` for every u that the op of v reads: at that run, before
   ``d_v``, u is there; and if ``d_u`` came before, it was brought back before that.
3. memory: the bytes of all ``s_v = 1`` and what t holds besides are within the budget.
4. runs: repeated runs after t and before op D fit into the x between: for every D, the seconds of
   ops with some ``r_v = 1``, ``d_v <= D``, are at most the x from t to D.
5. link back: copies of one direction follow one another. Those with ``f_v = 1``, ``d_v <= D``,
   begin after t has run and end before D begins: their seconds are at most those of the ops
   between, and the x from t to D.
6. link out: with ``s_v = 0`` and ``f_v = 1`` no copy of v was on the device when t ran, and the
   one that is fetched was begun before, because it is what first brings v back. Dropping v on the
   device waited for it to end, so it ended before t; it began after v was made. For every op b:
   the seconds of such copies of values made by b or later are at most those of the ops between b
   and t, and the x from b to t.

Several cuts share the x, so that what one cut must wait for and another recompute adds up where
they lie apart. Only a few moments part the stretches: rows for other D and b would be true,
too, and leaving them out only lowers the bound. Variables may be fractional in the bound, which
is what the multipliers prove (``linear_program.bound_of``). A known schedule's extra time caps
the x, so what is proved is the least of that and the program's value.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.solvers.api import floor_bytes
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.model.linear_program import Model, minimize
from planner.solvers.model.overshoot import overshoots
from planner.solvers.model.problem import held_bytes
from planner.solvers.tuning import (
    HOST_BOUND_CUTS,
    HOST_BOUND_INTEGER_OPS,
    HOST_BOUND_MOMENTS,
    HOST_QUICK_SECONDS,
)

TOLERANCE = 1e-5
"""What an integer program's value may be too high by, as a fraction: the solver's own tolerance."""


def bound_with_host(
    problem: HostProblem, known_extra: float, *, seconds: float = math.inf
) -> float:
    """Return seconds beyond running every op once that no schedule in the graph's order saves.

    Args:
        problem: the step, the budget and the host, whose limit of bytes is not used.
        known_extra: of a schedule that fits: the bound is no higher.
        seconds: after which to stop.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.graphs.hardware.host_tier import HostTier
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> [round(bound_with_host(HostProblem(g, 3, HostTier(rate, rate)), 9.0), 3)
    ...  for rate in (4.0, 1.0, 0.1)]  # a leaves while b runs, but comes back after c alone
    [0.25, 1.0, 1.0]
    """
    flat, budget = problem.flat, problem.budget_bytes
    held = held_bytes(flat, range(flat.n))
    if known_extra <= 0 or held.max(initial=0) <= budget:
        return 0.0
    exhaustive = flat.n <= HOST_BOUND_INTEGER_OPS
    cuts = (
        [t for t in range(flat.n) if held[t] > budget]
        if exhaustive
        else overshoots(flat, range(flat.n), budget, [], most=HOST_BOUND_CUTS)
    )
    program = _Program(problem, known_extra, cuts)
    for t in cuts:
        program.cut(t)
    result = minimize(program.model, relax=not exhaustive, seconds=seconds)
    value = result.bound * (1 - TOLERANCE if exhaustive else 1.0)
    return min(known_extra, max(0.0, value) * program.unit)


def may_take_with_host(problem: HostProblem, extra_seconds: float) -> bool:
    """Tell whether it is not quickly proved that every schedule takes longer than so much more.

    Args:
        problem: as for ``bound_with_host``.
        extra_seconds: beyond running every op once.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.graphs.hardware.host_tier import HostTier
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> [may_take_with_host(HostProblem(g, b, HostTier(4.0, 4.0)), 0.2) for b in (2, 3, 4)]
    [False, False, True]
    """
    if floor_bytes(problem.graph) > problem.budget_bytes:
        return False
    beyond = 2 * extra_seconds + 1e-9 * problem.graph.seconds
    bound = bound_with_host(problem, beyond, seconds=HOST_QUICK_SECONDS)
    return bound <= extra_seconds


@dataclass
class _Columns:
    """The columns of one cut, by value."""

    held: dict[int, int] = field(default_factory=dict)
    rerun: dict[int, int] = field(default_factory=dict)
    fetched: dict[int, int] = field(default_factory=dict)

    def supply(self, v: int) -> list[int]:
        return [c[v] for c in (self.held, self.rerun, self.fetched) if v in c]


class _Program:
    """The model, and the stretches that its cuts share."""

    def __init__(self, problem: HostProblem, known_extra: float, cuts: Sequence[int]) -> None:
        self.p, self.movable, self.tier = problem.flat, problem.movable, problem.tier
        self.budget = problem.budget_bytes
        self.model, self.unit = Model(), known_extra
        self.begins: list[float] = [0.0, *np.cumsum(self.p.seconds).tolist()]
        self.moments = sorted({0, self.p.n, *cuts, *_spread(self.begins, self.p.n)})
        self.stretches = [self.model.column(1.0) for _ in self.moments[1:]]

    def _between(self, first: int, last: int) -> list[int]:
        """Return the columns of the stretches from one moment to another."""
        a, b = (bisect_right(self.moments, t) - 1 for t in (first, last))
        return self.stretches[a:b]

    def cut(self, t: int) -> None:
        """Add the columns and rows of a cut."""
        p = self.p
        deadline = {v: next((u for u in p.uses[v] if u > t), p.n) for v in self._useful(t)}
        needed = {v for v in deadline if any(u > t for u in p.uses[v])}
        columns = self._columns(t, sorted(deadline))
        for v in sorted(needed - set(p.inputs[t])):
            supply = columns.supply(v)
            self.model.row(supply, [1.0] * len(supply), low=1.0)
        for v, rerun in columns.rerun.items():
            for u in p.inputs[p.maker[v]]:
                supply = columns.supply(u)
                self.model.row([rerun, *supply], [-1.0] + [1.0] * len(supply), low=0.0)
        sizes = [p.sizes[v] / self.budget for v in columns.held]
        room = (self.budget - p.own(t)) / self.budget
        self.model.row(list(columns.held.values()), sizes, high=room)
        for moment in self.moments:
            if moment > t:
                self._until(t, moment, columns, deadline)
            elif moment < t:
                self._since(t, moment, columns)

    def _useful(self, t: int) -> set[int]:
        """Return the values made before t that later ops read, or that make such values again."""
        p = self.p
        made = [v for v, maker in enumerate(p.maker) if maker < t]
        useful = {v for v in made if any(u >= t for u in p.uses[v])}
        stack = list(useful)
        while stack:
            for u in p.inputs[p.maker[stack.pop()]]:
                if u not in useful:
                    useful.add(u)
                    stack.append(u)
        return useful

    def _columns(self, t: int, values: Sequence[int]) -> _Columns:
        p, made = self.p, _Columns()
        for v in values:
            made.held[v] = self.model.column(0.0, lower=float(v in p.inputs[t]), integer=True)
            if p.recomputable[p.maker[v]]:
                made.rerun[v] = self.model.column(0.0, integer=True)
            if v in self.movable:
                made.fetched[v] = self.model.column(0.0, integer=True)
        return made

    def _until(self, t: int, moment: int, columns: _Columns, deadline: dict[int, int]) -> None:
        """Add the rows of repeated runs and of the link back, from a cut to a moment."""
        p = self.p
        by_op: dict[int, int] = {}
        for v in columns.rerun:
            first = by_op.setdefault(p.maker[v], v)
            if deadline[v] < deadline[first]:
                by_op[p.maker[v]] = v
        runs = [v for v in by_op.values() if deadline[v] <= moment]
        self._fits([(columns.rerun[v], p.seconds[p.maker[v]]) for v in runs], 0.0, t, moment)
        back = [v for v in columns.fetched if deadline[v] <= moment]
        seconds = [(columns.fetched[v], p.sizes[v] / self.tier.from_host) for v in back]
        self._fits(seconds, self.begins[moment] - self.begins[t + 1], t, moment)

    def _since(self, t: int, moment: int, columns: _Columns) -> None:
        """Add the row of the link out, from a moment to a cut."""
        p = self.p
        out = [v for v in columns.fetched if p.maker[v] >= moment]
        seconds = [(columns.fetched[v], p.sizes[v] / self.tier.to_host) for v in out]
        self._fits(seconds, self.begins[t] - self.begins[moment + 1], moment, t)

    def _fits(self, terms: Sequence[tuple[int, float]], room: float, first: int, last: int) -> None:
        """Add the row that says that seconds fit into those of first runs and the x between."""
        if not terms:
            return
        stretches = self._between(first, last)
        index = [*(column for column, _ in terms), *stretches]
        value = [s / self.unit for _, s in terms] + [-1.0] * len(stretches)
        self.model.row(index, value, high=room / self.unit)


def _spread(begins: Sequence[float], n: int) -> list[int]:
    """Return ops at whose first runs about equal parts of the time are over."""
    parts = min(n, HOST_BOUND_MOMENTS)
    times = [begins[-1] * k / parts for k in range(1, parts)]
    by_time = [min(n, max(0, bisect_right(begins, time) - 1)) for time in times]
    return [*by_time, *(n * k // parts for k in range(1, parts))]
