"""Points of the master: what an order is as one, and what of the values one says to hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.master_program import MasterProgram
from planner.solvers.model.positions import Positions
from planner.solvers.tuning import BRANCH_FRACTION


@dataclass(frozen=True)
class CutPlan:
    """For each cut the values to hold."""

    cuts: tuple[int, ...]
    keep: tuple[frozenset[int], ...]


def point_of(master: MasterProgram, positions: Positions, columns: int) -> NDArray[np.float64]:
    """Return the point that an order is, once it holds what it need not hold no more.

    It satisfies the rows if the order fits and no run of it is for nothing.

    Args:
        master: whose point it is to be; its model was built.
        positions: of the order's runs.
        columns: how many the model has.
    """
    x, p = np.zeros(columns), master.problem
    at = [*(positions.first(frame.t) for frame in master.frames), positions.length]
    for k, (held, redone) in enumerate(zip(master.held, master.redone, strict=True)):
        x[list(held.values())] = [positions.holds(v, at[k]) for v in held]
        x[list(redone.values())] = [positions.runs(o, at[k], at[k + 1]) for o in redone]
    given_up: dict[int, int] = {}
    for k, instead in enumerate(master.instead):
        given_up = _give_up(master, x, k, instead, given_up)
    for k, column in master.own_again.items():
        x[column] = positions.runs(master.frames[k].t, at[k] + 1, at[k + 1])
    for k, ever in enumerate(master.ever):
        for o, column in ever.items():
            x[column] = any(x[redone[o]] for redone in master.redone[k:] if o in redone)
    for k, through in master.through.items():
        for v, column in through.items():
            o, stays = p.maker[v], k + 1 == len(master.frames) or x[master.held[k + 1][v]] > 0
            again = master.own_again.get(k) if o == master.frames[k].t else master.redone[k].get(o)
            x[column] = stays and not (again is not None and x[again])
    return x


def _give_up(
    master: MasterProgram,
    x: NDArray[np.float64],
    k: int,
    instead: Mapping[int, int],
    before: Mapping[int, int],
) -> dict[int, int]:
    """Replace at a cut what need not be held; return it with the ops that make what is.

    What was given up at the cut before and is not made again on the way is given up here, too:
    what is held instead serves on.
    """
    found: dict[int, int] = {}
    either = {**before, **instead}
    for v in sorted(either, key=master.problem.maker.__getitem__):
        column = master.held[k].get(v)
        if column is not None and x[column]:
            again = master.redone[k - 1].get(master.problem.maker[v]) if k else None
            if v in instead or again is None or not x[again]:
                _replace(master, x, k, v, either[v])
                found[v] = either[v]
    if k:
        _run_earlier(master, x, k, list(found.values())[::-1])
    return found


def _replace(master: MasterProgram, x: NDArray[np.float64], k: int, v: int, op: int) -> None:
    """Hold at a cut what an op makes of a value instead of the value."""
    x[master.held[k][v]] = 0.0
    for u in master.problem.outputs[op]:
        if u in master.held[k]:
            x[master.held[k][u]] = 1.0
    again = master.redone[k].get(master.problem.maker[v])
    if again is None or not x[again]:
        x[master.redone[k][op]] = 0.0


def _run_earlier(master: MasterProgram, x: NDArray[np.float64], k: int, ops: Sequence[int]) -> None:
    """Run ops, last ones first, in the window before a cut if what they make is missing."""
    reads = {v for v, column in master.held[k].items() if x[column]}
    for op in ops:
        made = reads.intersection(master.problem.outputs[op])
        if op in master.redone[k - 1] and not all(x[master.held[k - 1][u]] for u in made):
            x[master.redone[k - 1][op]] = 1.0
            reads.update(u for u in master.problem.inputs[op] if u not in master.tiny)


def exact_plan(master: MasterProgram, x: NDArray[np.float64]) -> CutPlan:
    """Read the held values off an integer point."""
    keep = tuple(frozenset(v for v, c in held.items() if x[c] > 0.5) for held in master.held)
    return CutPlan(tuple(f.t for f in master.frames), keep)


def rounded_plan(
    master: MasterProgram, x: NDArray[np.float64], thresholds: Sequence[float] | None = None
) -> CutPlan:
    """Read the held values off a point.

    What runs again from a cut on more than the threshold is not held there; what is held for the
    rest of the way, is.

    Args:
        master: whose point it is.
        x: one value a column.
        thresholds: of each op; a half for all by default.
    """
    keep: list[frozenset[int]] = []
    later: dict[int, float] = {}
    for held, redone in zip(master.held[::-1], master.redone[::-1], strict=True):
        for o, column in redone.items():
            later[o] = min(1.0, later.get(o, 0.0) + x[column])
        kept = set[int]()
        for v, column in held.items():
            o = master.problem.maker[v]
            again, limit = later.get(o, 0.0), thresholds[o] if thresholds else 0.5
            if again <= limit < again + x[column]:
                kept.add(v)
        keep.append(frozenset(kept))
    return CutPlan(tuple(f.t for f in master.frames), tuple(keep[::-1]))


def fractions(master: MasterProgram, x: NDArray[np.float64]) -> list[int]:
    """Return columns that a point has a fraction of: values by their bytes, then ops by seconds.

    Of each, the one of the first cut at which that is so.

    Args:
        master: whose point it is.
        x: one value a column.
    """
    p, own = master.problem, {master.frames[k].t: c for k, c in master.own_again.items()}

    def weighed(groups: Sequence[Mapping[int, int]], weights: Sequence[float]) -> list[int]:
        found: dict[int, tuple[float, int]] = {}
        for group in groups:
            for key, column in group.items():
                part = min(x[column], 1 - x[column])
                if key not in found and part > BRANCH_FRACTION:
                    found[key] = (-part * weights[key], column)
        return [column for _, column in sorted(found.values())]

    return [*weighed(master.held, p.sizes), *weighed([*master.redone, own], p.seconds)]
