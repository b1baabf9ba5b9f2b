"""A bound for schedules whose first runs may come in any order that the graph allows.

At the first run of an op everything it depends on has run and nothing that depends on it has. So
the master problem (``master``) is true for any order once all other ops are left out of it; several
cuts, each depending on the one before, part what is left into windows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from planner.solvers.model.master import solve_master
from planner.solvers.model.precedence import Freedom
from planner.solvers.model.problem import Problem
from planner.solvers.tuning import ANY_ORDER_CUTS, CUTS_APART


@dataclass(frozen=True)
class _Kin:
    """For each op, as bits, what must first run before it and what after it."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def bound_any_order(
    problem: Problem,
    free: Freedom,
    budget: int,
    *,
    gap: float = 0.0,
    work: int | None = None,
    seconds: float = math.inf,
) -> float:
    """Return seconds beyond running every op once that no order saves; ``inf`` if none fits.

    Args:
        problem: the step, flattened.
        free: which ops may run in another order.
        budget: in bytes.
        gap: in seconds, at which to stop.
        work: checks of an integer search times the entries of its matrix.
        seconds: after which to stop, as the last resort.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.precedence import freedom
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 5.0),
    ...        Op("c", "f", (1,), (2,), 1.0), Op("d", "f", (0, 2), (3,), 1.0))
    >>> g = Graph(ops, tuple(Value(x, 2 if x == "b" else 1) for x in "abcd"))
    >>> [round(bound_any_order(flatten(g), freedom(g), budget), 3) for budget in (4, 3, 2)]
    [0.0, 1.0, inf]
    """
    deadline, kin = time.monotonic() + seconds, _kin(free)
    weights = [_forced_bytes(problem, kin, t) for t in range(problem.n)]
    chain: list[int] = []
    bound = 0.0
    for t in sorted(range(problem.n), key=lambda t: (-weights[t], t)):
        late = time.monotonic() > deadline
        if late or len(chain) == ANY_ORDER_CUTS or weights[t] <= budget:
            break
        near = max(1, problem.n // CUTS_APART)
        if all(_related(kin, t, u) and abs(t - u) > near for u in chain):
            chain = sorted([*chain, t])
            part, cuts = _certain(problem, kin, chain)
            left = deadline - time.monotonic()
            found = solve_master(part, budget, cuts, gap=gap, seconds=left, work=work).bound
            bound = max(bound, found)
    return bound


def _kin(free: Freedom) -> _Kin:
    before = free.ancestors()
    after = [0] * len(before)
    for o, bits in enumerate(before):
        for u in ops_of(bits):
            after[u] |= 1 << o
    return _Kin(tuple(before), tuple(after))


def ops_of(bits: int) -> list[int]:
    """Return the numbers of the bits that are set.

    >>> ops_of(0b1010)
    [1, 3]
    """
    return [i for i, digit in enumerate(reversed(f"{bits:b}")) if digit == "1"]


def _related(kin: _Kin, t: int, u: int) -> bool:
    return bool((kin.before[t] | kin.after[t]) >> u & 1)


def _forced_bytes(problem: Problem, kin: _Kin, t: int) -> int:
    """Return what is held at the first run of an op in any order if nothing runs again."""
    held = problem.own(t)
    for o in ops_of(kin.before[t]):
        for v in problem.outputs[o]:
            later = (r in (problem.n, t) or kin.after[t] >> r & 1 for r in problem.uses[v])
            held += problem.sizes[v] if any(later) else 0
    return held


def _certain(problem: Problem, kin: _Kin, chain: Sequence[int]) -> tuple[Problem, list[int]]:
    """Return the problem of the ops whose window is certain, and the cuts in its numbers."""
    kept: list[int] = []
    for o in range(problem.n):
        passed = [t for t in chain if t == o or kin.before[o] >> t & 1]
        rest = chain[len(passed) :]
        if not rest or kin.before[rest[0]] >> o & 1:
            kept.append(o)
    number = {o: i for i, o in enumerate(kept)}
    n = len(kept)
    part = Problem(
        inputs=tuple(
            tuple(v for v in problem.inputs[o] if problem.maker[v] in number) for o in kept
        ),
        outputs=tuple(problem.outputs[o] for o in kept),
        seconds=tuple(problem.seconds[o] for o in kept),
        workspace=tuple(problem.workspace[o] for o in kept),
        recomputable=tuple(problem.recomputable[o] for o in kept),
        sizes=problem.sizes,
        maker=tuple(number.get(o, n) for o in problem.maker),
        uses=tuple(
            tuple(n if r == problem.n else number[r] for r in uses if r == problem.n or r in number)
            for uses in problem.uses
        ),
        ends=tuple(v for v in problem.ends if problem.maker[v] in number),
        resident_bytes=problem.resident_bytes,
    )
    return part, [number[t] for t in chain]
