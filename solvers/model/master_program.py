"""The master problem: what to hold at a few cut steps, and what to recompute between them.

A cut ``k`` is the moment op ``t[k]`` first runs; window ``k`` lasts from it to cut ``k + 1``, the
last window to the end. For values ``v`` made before the cut, ``s[v, k] = 1`` if ``v`` is held at
the cut; for the ops ``o`` before it, ``r[o, k] = 1`` if ``o`` runs again in the window.

    need    s[v, k] + r[maker(v), k] >= 1                  v read in the window by an op's first run
    chain   r[o, k] <= s[u, k] + r[maker(u), k]            u an input of o
    carry   s[v, k + 1] <= s[v, k] + r[maker(v), k]
    memory  sum over v of bytes(v) s[v, k] <= budget - own(t[k])

and the seconds of ``r`` are minimized. Of the memory between cuts only what runs again in a window
is seen, and only for the ops asked for (``bursts``): ``z[v, k] = 1`` if ``v`` is held all through
window ``k``, and what such values leave must do for an op that runs again in it.

    through z[v, k] >= s[v, k + 1] - r[maker(v), k]        v made by op t[k] or before
    burst   sum over v not of o of bytes(v) z[v, k] + (own(o) + bytes of inputs) r[o, k] <= budget

Every schedule whose first runs follow the graph's order satisfies these rows, whatever the cuts and
the bursts, so the optimum is a lower bound on its extra time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.dominance import dominated
from planner.solvers.model.linear_program import Model
from planner.solvers.model.problem import Problem
from planner.solvers.model.windows import Window

SLACK = 1e-7  # widens the memory rows, so that rounding never cuts off a schedule that fits

Burst = tuple[int, int]
"""An op, and the cut in whose window it may run again."""


class MasterProgram:
    """The columns of the master and the rows over them.

    ``held[k]`` and ``redone[k]`` are the columns of cut ``k`` by value and by op, ``ever[k]`` those
    of ``y``, ``through[k]`` those of ``z``, ``own_again[k]`` that of the cut's own op;
    ``memory_rows`` are by the cut's op. ``instead[k]`` names, for values that need not be held at
    the cut, an op that reads them: what that makes may be held in their place. Costs are in units
    of ``unit`` seconds.
    """

    def __init__(
        self,
        problem: Problem,
        frames: list[Window],
        tiny: frozenset[int],
        pinned: frozenset[int],
    ) -> None:
        self.problem, self.frames, self.tiny, self.pinned = problem, frames, tiny, pinned
        self.unit = max(problem.seconds, default=0.0) or 1.0
        self.held: list[dict[int, int]] = []
        self.redone: list[dict[int, int]] = []
        self.ever: list[dict[int, int]] = []
        self.through: dict[int, dict[int, int]] = {}
        self.own_again: dict[int, int] = {}
        self.instead: list[dict[int, int]] = []
        self.memory_rows: dict[int, int] = {}
        self.burst_rows: dict[Burst, int] = {}

    def space(self, frame: Window, budget: int) -> int:
        """Return the bytes left at a cut for values made before it."""
        return int(budget * (1 + SLACK)) - self.problem.own(frame.t)

    def byte(self, frame: Window, budget: int) -> float:
        """Return the bytes that count as one in a cut's memory row."""
        return float(max(self.space(frame, budget), 1))

    def model(self, budget: int, bursts: Collection[Burst] = ()) -> Model:
        """Build the model."""
        model = Model()
        for k, frame in enumerate(self.frames):
            self._columns(model, frame)
            self._need(model, frame, k)
            self._chain(model, k)
            if k:
                self._carry(model, k)
            self._memory(model, frame, k, budget)
        for k in range(len(self.frames) - 1):
            self._ever(model, k)
        for k, frame in enumerate(self.frames):
            ops = sorted({op for op, t in bursts if t == frame.t and op in self.redone[k]})
            if ops:
                self._burst(model, k, ops, budget)
        self.instead = dominated(self.problem, self.frames, bursts, self.tiny)
        for held, instead in zip(self.held, self.instead, strict=True):
            for v in instead.keys() - self.pinned:
                model.upper[held[v]] = 0.0
        return model

    def tags(self) -> list[Hashable]:
        """Tell ops apart by the windows that read what they make, and by what is pinned of it."""
        reads: list[set[tuple[int, int]]] = [set() for _ in range(self.problem.n)]
        for k, frame in enumerate(self.frames):
            for v in frame.need:
                o = self.problem.maker[v]
                at_cut = v in self.problem.inputs[frame.t]
                reads[o].add((self.problem.outputs[o].index(v), 2 * k + at_cut))
        cuts, p = [frame.t for frame in self.frames], self.problem
        pins = [tuple(v in self.pinned for v in p.outputs[o]) for o in range(p.n)]
        return [(bisect_right(cuts, o), frozenset(reads[o]), pins[o]) for o in range(p.n)]

    def classes(self, colors: Sequence[int]) -> NDArray[np.int64]:
        """Return for each column a number that those of ops of one color share, at each cut."""
        p = self.problem
        found: dict[int, tuple[int, ...]] = {}
        for k, (held, redone) in enumerate(zip(self.held, self.redone, strict=True)):
            for v, c in held.items():
                o = p.maker[v]
                found[c] = (0, k, colors[o], p.outputs[o].index(v))
            found.update({c: (1, k, colors[o]) for o, c in redone.items()})
        for k, ever in enumerate(self.ever):
            found.update({c: (2, k, colors[o]) for o, c in ever.items()})
        number: dict[tuple[int, ...], int] = {}
        return np.array([number.setdefault(found[c], len(number)) for c in range(len(found))])

    def _columns(self, model: Model, frame: Window) -> None:
        p, reads = self.problem, self.pinned.union(self.problem.inputs[frame.t])
        self.held.append(
            {v: model.column(0.0, lower=float(v in reads), integer=True) for v in frame.relevant}
        )
        makers = dict.fromkeys(p.maker[v] for v in frame.relevant)
        self.redone.append(
            {
                o: model.column(p.seconds[o] / self.unit, integer=True)
                for o in makers
                if p.recomputable[o]
            }
        )

    def _supply(self, v: int, k: int) -> list[int]:
        """Return the columns that make ``v`` available in window ``k``."""
        again = self.redone[k].get(self.problem.maker[v])
        return [self.held[k][v]] if again is None else [self.held[k][v], again]

    def _need(self, model: Model, frame: Window, k: int) -> None:
        for v in sorted(frame.need.difference(self.problem.inputs[frame.t])):
            columns = self._supply(v, k)
            model.row(columns, [1.0] * len(columns), low=1.0)

    def _chain(self, model: Model, k: int) -> None:
        for op, again in self.redone[k].items():
            for u in self.problem.inputs[op]:
                if u not in self.tiny:
                    columns = self._supply(u, k)
                    model.row([*columns, again], [1.0] * len(columns) + [-1.0], low=0.0)

    def _carry(self, model: Model, k: int) -> None:
        before = self.held[k - 1]
        for v, held in self.held[k].items():
            if v in before:
                columns = self._supply(v, k - 1)
                model.row([*columns, held], [1.0] * len(columns) + [-1.0], low=0.0)

    def _ever(self, model: Model, k: int) -> None:
        """Add ``y[o]``: does ``o`` run again in window ``k`` or later? Tightens the relaxation."""
        p, later = self.problem, range(k, len(self.frames))
        ever = {o: model.column(0.0, integer=True) for o in self.redone[k]}
        self.ever.append(ever)
        for op, y in ever.items():
            runs = [self.redone[j][op] for j in later if op in self.redone[j]]
            model.row([*runs, y], [1.0] * len(runs) + [-1.0], low=0.0)
            for u in p.inputs[op]:
                if u not in self.tiny:
                    columns = [self.held[k][u], *([ever[p.maker[u]]] if p.maker[u] in ever else [])]
                    model.row([*columns, y], [1.0] * len(columns) + [-1.0], low=0.0)
        needed = {v for j in later for v in self.frames[j].need if p.maker[v] < self.frames[k].t}
        for v in sorted(needed):
            columns = [self.held[k][v], *([ever[p.maker[v]]] if p.maker[v] in ever else [])]
            model.row(columns, [1.0] * len(columns), low=1.0)

    def _memory(self, model: Model, frame: Window, k: int, budget: int) -> None:
        space, unit = self.space(frame, budget), self.byte(frame, budget)
        weights = {c: self.problem.sizes[v] / unit for v, c in self.held[k].items()}
        heavy = {c: w for c, w in weights.items() if w > 1e-9}
        self.memory_rows[frame.t] = len(model.low)
        model.row(list(heavy), list(heavy.values()), high=space / unit)

    def _burst(self, model: Model, k: int, ops: Sequence[int], budget: int) -> None:
        p, through = self.problem, self._through(model, k)
        space = int(budget * (1 + SLACK)) - p.resident_bytes
        unit = float(max(space, 1))
        for op in ops:
            own = p.own(op) - p.resident_bytes + sum(p.sizes[v] for v in p.inputs[op])
            others = through.keys() - {*p.inputs[op], *p.outputs[op]}
            weights = {through[v]: p.sizes[v] / unit for v in sorted(others) if p.sizes[v]}
            weights[self.redone[k][op]] = own / unit
            self.burst_rows[op, self.frames[k].t] = len(model.low)
            model.row(list(weights), list(weights.values()), high=space / unit)

    def _through(self, model: Model, k: int) -> dict[int, int]:
        """Add ``z[v, k]`` and return its column for each ``v``.

        The cut's own op, too, may run again in its window; only here does that matter.
        """
        p, t = self.problem, self.frames[k].t
        runs = dict(self.redone[k])
        if p.recomputable[t]:
            runs[t] = self.own_again[k] = model.column(p.seconds[t] / self.unit, integer=True)
        last = k + 1 == len(self.frames)
        found: dict[int, int] = {}
        for v in p.ends if last else self.held[k + 1]:
            if p.maker[v] > t:
                continue
            found[v] = model.column(0.0, integer=True)
            columns, signs = [found[v]], [1.0]
            if (again := runs.get(p.maker[v])) is not None:
                columns, signs = [*columns, again], [*signs, 1.0]
            if not last:
                columns, signs = [*columns, self.held[k + 1][v]], [*signs, -1.0]
            model.row(columns, signs, low=float(last))
        self.through[k] = found
        return found
