"""Rows along paths of ops, which tighten relaxations of the master over several windows at once.

Let ``k < l`` be cuts, ``v = u[0]`` a value made before cut ``k``, and ``o[1], u[1], o[2], ...,
o[m]`` a path back from it: ``o[i]`` makes ``u[i - 1]`` and reads ``u[i]``. Then

    s[v, l] <= s[u[0], k] + ... + s[u[m - 1], k] + sum over windows j from k to l - 1 of r[o[m], j]

and the same with 1 for ``s[v, l]`` if a first run in one of these windows reads ``v``.

Every integer point of the master satisfies these rows. Let ``v`` be held at cut ``l``. By the carry
rows it is held at cut ``k``, and the row holds, or its maker ``o[1]`` runs again in a window ``j``
from ``k`` to ``l - 1``. Then, by the chain row, ``u[1]`` is held at cut ``j`` or made again in
window ``j``; so, by the carry rows again, it is held at cut ``k``, or ``o[2]`` runs again in a
window from ``k`` to ``j``; and so on to ``o[m]``. A value read in window ``j`` is held at cut ``j``
or made again in it, by its need row, with the same consequence. So the integer optimum stays what
it is, and what bounds it bounds the extra time.

Fractional points do violate them: a little of ``u[1]``, held over many windows, makes a little of
``v`` in each, until all of ``v`` is there. The row of a path counts that little once. If ``o[m]``
cannot run again the sum is empty. No path leads through a value that counts as always held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.linear_program import Row
from planner.solvers.model.master_program import MasterProgram
from planner.solvers.tuning import LEAST_VIOLATION


@dataclass(frozen=True)
class _Supply:
    """From cut ``start`` up to cut ``stop``: how much of a value can have been made again by then.

    ``made[o]`` is the least over paths that begin with ``o``, and ``through[o]`` the input through
    which the path goes on, ``None`` where it ends.
    """

    start: int
    stop: int
    made: dict[int, float]
    through: dict[int, int | None]


def path_rows(master: MasterProgram, x: NDArray[np.float64], most: int) -> list[Row]:
    """Return rows that a point violates, the most violated ones, one for each value and cut.

    Args:
        master: whose point it is; its model was built.
        x: one value a column.
        most: how many at most.
    """
    found: dict[tuple[int, int, bool], tuple[float, Row]] = {}
    for k in range(len(master.frames)):
        runs = dict.fromkeys(sorted(master.redone[k]), 0.0)
        for stop in range(k + 1, len(master.frames) + 1):
            for o in runs:
                if (column := master.redone[stop - 1].get(o)) is not None:
                    runs[o] += x[column]
            if stop == k + 1:
                continue  # the rows of one window say it
            supply = _supply(master, x, (k, stop), runs)
            for v, wanted, column in _wanted(master, x, k, stop):
                lacking = (
                    wanted - x[master.held[k][v]] - supply.made.get(master.problem.maker[v], 0)
                )
                key = (v, stop, column is None)
                if lacking > LEAST_VIOLATION and lacking > found.get(key, (0.0,))[0]:
                    found[key] = (lacking, _row(master, supply, v, column))
    ranked = sorted(found, key=lambda key: (-found[key][0], key))
    return [found[key][1] for key in ranked[:most]]


def _wanted(
    master: MasterProgram, x: NDArray[np.float64], k: int, stop: int
) -> Iterator[tuple[int, float, int | None]]:
    """Yield values with how much of each must be there by a cut, and the column that says it."""
    before = master.held[k]
    if stop < len(master.frames):
        for v, column in master.held[stop].items():
            if v in before:
                yield v, x[column], column
    for v in sorted(master.frames[stop - 1].need):
        if v in before:
            yield v, 1.0, None


def _supply(
    master: MasterProgram,
    x: NDArray[np.float64],
    between: tuple[int, int],
    runs: dict[int, float],
) -> _Supply:
    held, p = master.held[between[0]], master.problem
    made, through = dict[int, float](), dict[int, int | None]()
    for o, most in runs.items():  # makers first
        made[o], through[o] = most, None
        for u in p.inputs[o] if most > 0 else ():
            if u not in master.tiny and (there := x[held[u]] + made.get(p.maker[u], 0.0)) < made[o]:
                made[o], through[o] = there, u
    return _Supply(*between, made, through)


def _row(master: MasterProgram, supply: _Supply, v: int, column: int | None) -> Row:
    held, p = master.held[supply.start], master.problem
    columns, o = [held[v]], p.maker[v]
    while (u := supply.through.get(o)) is not None:
        columns.append(held[u])
        o = p.maker[u]
    columns += [redone[o] for redone in master.redone[supply.start : supply.stop] if o in redone]
    if column is None:
        return Row(tuple(columns), (1.0,) * len(columns), 1.0)
    return Row((*columns, column), (*(1.0,) * len(columns), -1.0), 0.0)
