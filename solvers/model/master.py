"""Solving the master problem, relaxed or integer: a bound on the extra time, and what to hold.

The problem itself is in ``master_program``; what its points mean, in ``master_points``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from planner.solvers.model.branching import branched
from planner.solvers.model.linear_program import Model, Result, minimize, tighten
from planner.solvers.model.master_points import (
    CutPlan,
    exact_plan,
    fractions,
    point_of,
    rounded_plan,
)
from planner.solvers.model.master_program import Burst, MasterProgram
from planner.solvers.model.path_rows import path_rows
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem
from planner.solvers.model.symmetry import aggregate, alike, ranks
from planner.solvers.model.windows import windows
from planner.solvers.tuning import LEAST_PRICE, MOST_PATH_ROWS

TOLERANCE = 1e-6
"""Taken off what an integer search proves, which is no more exact: of it, and of the longest op."""
ROUNDING = 1e-12  # and off what multipliers prove, for the costs' units


@dataclass(frozen=True)
class MasterResult:
    """The plan found (``None`` if none) and the proven bound on the extra seconds.

    ``binding`` are the cuts and the bursts whose memory counts in the proof of a relaxation:
    without the others it would prove about as much.
    """

    plan: CutPlan | None
    bound: float
    binding: tuple[frozenset[int], frozenset[Burst]] = (frozenset(), frozenset())


def solve_master(
    problem: Problem,
    budget: int,
    cuts: Sequence[int],
    *,
    bursts: Collection[Burst] = (),
    tiny: frozenset[int] = frozenset(),
    relax: bool = False,
    gap: float = 0.0,
    seconds: float = math.inf,
    work: int | None = None,
    near: Sequence[int] | None = None,
    seed: int = 0,
    shared: bool = False,
    pinned: frozenset[int] = frozenset(),
    path_rounds: int = 0,
) -> MasterResult:
    """Solve the master.

    Args:
        problem: the step, flattened.
        budget: in bytes.
        cuts: the ops at whose first runs the windows begin.
        bursts: ops that may run again in a window, each with its cut.
        tiny: values that count as always held and weightless.
        relax: solve the linear relaxation; the plan is then its rounding.
        gap: seconds between cost and bound at which to stop.
        seconds: after which to stop.
        work: what an integer search may cost: its checks times the entries of its matrix.
        near: an order that fits and whose first runs are the graph's, to begin with.
        seed: of every random choice.
        shared: let ops that look alike share the columns of a relaxation; of many equal layers the
            first are then those that recompute.
        pinned: values held at every cut; the bound is then one on plans that do.
        path_rounds: how often rows along paths are added to a relaxation, that of an integer search
            before it, too.
    """
    master = MasterProgram(problem, windows(problem, cuts, tiny), tiny, pinned)
    if any(master.space(w, budget) < 0 for w in master.frames):
        return MasterResult(None, math.inf)
    model = master.model(budget, bursts)
    if shared:
        assert relax, "an average over layers is no integer"
        return _solve_shared(master, model, seconds=seconds, seed=seed)
    if relax:
        result = _tightened(master, model, path_rounds, seconds=seconds, seed=seed)
        plan = None if result.x is None else rounded_plan(master, result.x)
        bound = max(0.0, result.bound * (1 - ROUNDING)) * master.unit
        return MasterResult(plan, bound, _binding(master, result))
    if path_rounds:
        began = time.monotonic()
        _tightened(master, model, path_rounds, seconds=seconds, seed=seed)
        seconds = max(0.0, seconds - (time.monotonic() - began))
    result = minimize(
        model,
        gap=gap / master.unit,
        seconds=seconds,
        checks=None if work is None else model.checks_for(work),
        start=None if near is None else point_of(master, Positions(problem, near), len(model.cost)),
        seed=seed,
    )
    plan = None if result.x is None else exact_plan(master, result.x)
    proved = result.bound * (1 - TOLERANCE) - TOLERANCE
    return MasterResult(plan, max(0.0, proved) * master.unit)


def _tightened(
    master: MasterProgram, model: Model, rounds: int, *, seconds: float, seed: int
) -> Result:
    """Solve a relaxation, adding rows along paths for some rounds."""
    return tighten(
        model,
        lambda x: path_rows(master, x, MOST_PATH_ROWS),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )


def _binding(master: MasterProgram, result: Result) -> tuple[frozenset[int], frozenset[Burst]]:
    if result.duals is None:
        return frozenset(master.memory_rows), frozenset(master.burst_rows)
    prices = np.abs(result.duals)
    rows = [*master.memory_rows.values(), *master.burst_rows.values()]
    least = LEAST_PRICE * prices[rows].sum()
    return (
        frozenset(t for t, row in master.memory_rows.items() if prices[row] > least),
        frozenset(burst for burst, row in master.burst_rows.items() if prices[row] > least),
    )


def _solve_shared(
    master: MasterProgram, model: Model, *, seconds: float, seed: int
) -> MasterResult:
    colors = alike(master.problem, master.tags())
    classes = master.classes(colors)
    result = minimize(aggregate(model, classes), relax=True, seconds=seconds, seed=seed)
    plan = None
    if result.x is not None:
        plan = rounded_plan(master, result.x[classes], ranks(colors))
    return MasterResult(plan, max(0.0, result.bound * (1 - ROUNDING)) * master.unit)


def branch_master(
    problem: Problem,
    budget: int,
    cuts: Sequence[int],
    *,
    bursts: Collection[Burst] = (),
    enough: float,
    work: float = math.inf,
    seconds: float = math.inf,
    seed: int = 0,
) -> MasterResult:
    """Branch on the master: a bound, and the plan that the side which proves least rounds to.

    What is held at the cuts is branched on, by the bytes that a relaxation holds a fraction of, and
    rows along paths are added on every side: every schedule is a whole point of the master, and
    they hold for all of those.

    Args:
        problem, budget, cuts, bursts, seconds, seed: as for ``solve_master``.
        enough: the bound at which to stop.
        work: what it may cost: iterations times the entries of the matrix.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (), (2,)),
    ...        Op("d", "f", (0,), (3,)), Op("e", "f", (1,), (4,)))
    >>> p = flatten(Graph(ops, tuple(Value(x, size) for x, size in zip("abcde", (2, 2, 1, 0, 0)))))
    >>> relaxed = solve_master(p, 4, [2], relax=True).bound
    >>> round(relaxed, 6), round(branch_master(p, 4, [2], enough=9.0).bound, 6)
    (0.5, 1.0)
    """
    nothing = frozenset[int]()
    master = MasterProgram(problem, windows(problem, cuts, nothing), nothing, nothing)
    if any(master.space(frame, budget) < 0 for frame in master.frames):
        return MasterResult(None, enough)
    found = branched(
        master.model(budget, bursts),
        lambda x: path_rows(master, x, MOST_PATH_ROWS),
        lambda x: fractions(master, x),
        enough=enough / master.unit,
        work=work,
        seconds=seconds,
        seed=seed,
    )
    plan = None if found.x is None else rounded_plan(master, found.x)
    return MasterResult(plan, max(0.0, found.bound * (1 - ROUNDING)) * master.unit)


@dataclass(frozen=True)
class OneCut:
    """The relaxed master of one cut. Its last row is the memory row, the only one with the budget.

    Costs are in units of ``second`` seconds, the memory row in units of ``byte`` bytes; while the
    cut's op runs, ``own_bytes`` of the budget are not for values made before.
    """

    model: Model
    second: float
    byte: float
    own_bytes: int


def one_cut(problem: Problem, budget: int, cut: int) -> OneCut:
    """Return the master of one cut at a budget, to be relaxed.

    Args:
        problem: the step, flattened.
        budget: in bytes.
        cut: the op at whose first run memory is counted.
    """
    nothing = frozenset[int]()
    master = MasterProgram(problem, windows(problem, [cut], nothing), nothing, nothing)
    byte = master.byte(master.frames[0], budget)
    return OneCut(master.model(budget), master.unit, byte, problem.own(cut))
