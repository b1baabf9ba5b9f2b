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

import math
from bisect import bisect_right
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.dominance import dominated
from planner.solvers.model.linear_program import Model, minimize
from planner.solvers.model.positions import Positions
from planner.solvers.model.problem import Problem
from planner.solvers.model.symmetry import aggregate, alike, ranks
from planner.solvers.model.windows import Window, windows
from planner.solvers.tuning import LEAST_CHECKS

SLACK = 1e-7  # widens the memory rows, so that rounding never cuts off a schedule that fits
TOLERANCE = 1e-6  # the part taken off what an integer search proves, which is no more exact
ROUNDING = 1e-12  # and off what multipliers prove, for the costs' units

Burst = tuple[int, int]
"""An op, and the cut in whose window it may run again."""


@dataclass(frozen=True)
class CutPlan:
    """For each cut the values to hold."""

    cuts: tuple[int, ...]
    keep: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class MasterResult:
    """The plan found (``None`` if none) and the proven bound on the extra seconds."""

    plan: CutPlan | None
    bound: float


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
    """
    master = _Master(problem, windows(problem, cuts, tiny), tiny, pinned)
    if any(master.space(w, budget) < 0 for w in master.frames):
        return MasterResult(None, math.inf)
    model = master.model(budget, bursts)
    if shared:
        assert relax, "an average over layers is no integer"
        return _solve_shared(master, model, seconds=seconds, seed=seed)
    checks = None if work is None else max(LEAST_CHECKS, work // len(model.index))
    start = (
        None if relax or near is None else master.point(Positions(problem, near), len(model.cost))
    )
    result = minimize(
        model,
        relax=relax,
        gap=gap / master.unit,
        seconds=seconds,
        checks=checks,
        start=start,
        seed=seed,
    )
    plan = None
    if result.x is not None:
        plan = master.plan(result.x) if relax else master.exact_plan(result.x)
    less = ROUNDING if relax else TOLERANCE
    return MasterResult(plan, max(0.0, result.bound * (1 - less)) * master.unit)


def _solve_shared(master: _Master, model: Model, *, seconds: float, seed: int) -> MasterResult:
    colors = alike(master.problem, master.tags())
    classes = master.classes(colors)
    result = minimize(aggregate(model, classes), relax=True, seconds=seconds, seed=seed)
    plan = None
    if result.x is not None:
        plan = master.plan(result.x[classes], ranks(colors))
    return MasterResult(plan, max(0.0, result.bound * (1 - ROUNDING)) * master.unit)


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
    master = _Master(problem, windows(problem, [cut], nothing), nothing, nothing)
    byte = master.byte(master.frames[0], budget)
    return OneCut(master.model(budget), master.unit, byte, problem.own(cut))


class _Master:
    """The columns of the master and the rows over them."""

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

    def point(self, positions: Positions, columns: int) -> NDArray[np.float64]:
        """Return the point that an order is, once it holds what it need not hold no more.

        It satisfies the rows if the order fits and no run of it is for nothing.
        """
        x, p = np.zeros(columns), self.problem
        at = [*(positions.first(frame.t) for frame in self.frames), positions.length]
        for k, (held, redone) in enumerate(zip(self.held, self.redone, strict=True)):
            x[list(held.values())] = [positions.holds(v, at[k]) for v in held]
            x[list(redone.values())] = [positions.runs(o, at[k], at[k + 1]) for o in redone]
        given_up: dict[int, int] = {}
        for k, instead in enumerate(self.instead):
            given_up = self._give_up(x, k, instead, given_up)
        for k, column in self.own_again.items():
            x[column] = positions.runs(self.frames[k].t, at[k] + 1, at[k + 1])
        for k, ever in enumerate(self.ever):
            for o, column in ever.items():
                x[column] = any(x[redone[o]] for redone in self.redone[k:] if o in redone)
        for k, through in self.through.items():
            for v, column in through.items():
                o, stays = p.maker[v], k + 1 == len(self.frames) or x[self.held[k + 1][v]] > 0
                again = self.own_again.get(k) if o == self.frames[k].t else self.redone[k].get(o)
                x[column] = stays and not (again is not None and x[again])
        return x

    def _give_up(
        self,
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
        for v in sorted(either, key=self.problem.maker.__getitem__):
            column = self.held[k].get(v)
            if column is not None and x[column]:
                again = self.redone[k - 1].get(self.problem.maker[v]) if k else None
                if v in instead or again is None or not x[again]:
                    self._replace(x, k, v, either[v])
                    found[v] = either[v]
        if k:
            self._run_earlier(x, k, list(found.values())[::-1])
        return found

    def _replace(self, x: NDArray[np.float64], k: int, v: int, op: int) -> None:
        """Hold at a cut what an op makes of a value instead of the value."""
        x[self.held[k][v]] = 0.0
        for u in self.problem.outputs[op]:
            if u in self.held[k]:
                x[self.held[k][u]] = 1.0
        again = self.redone[k].get(self.problem.maker[v])
        if again is None or not x[again]:
            x[self.redone[k][op]] = 0.0

    def _run_earlier(self, x: NDArray[np.float64], k: int, ops: Sequence[int]) -> None:
        """Run ops, last ones first, in the window before a cut if what they make is missing."""
        reads = {v for v, column in self.held[k].items() if x[column]}
        for op in ops:
            made = reads.intersection(self.problem.outputs[op])
            if op in self.redone[k - 1] and not all(x[self.held[k - 1][u]] for u in made):
                x[self.redone[k - 1][op]] = 1.0
                reads.update(u for u in self.problem.inputs[op] if u not in self.tiny)

    def exact_plan(self, x: NDArray[np.float64]) -> CutPlan:
        """Read the held values off an integer point."""
        keep = tuple(frozenset(v for v, c in held.items() if x[c] > 0.5) for held in self.held)
        return CutPlan(tuple(f.t for f in self.frames), keep)

    def plan(self, x: NDArray[np.float64], thresholds: Sequence[float] | None = None) -> CutPlan:
        """Read the held values off a point.

        What runs again from a cut on more than the threshold is not held there; what is held for
        the rest of the way, is.
        """
        keep: list[frozenset[int]] = []
        later: dict[int, float] = {}
        for held, redone in zip(self.held[::-1], self.redone[::-1], strict=True):
            for o, column in redone.items():
                later[o] = min(1.0, later.get(o, 0.0) + x[column])
            kept = set[int]()
            for v, column in held.items():
                o = self.problem.maker[v]
                again, limit = later.get(o, 0.0), thresholds[o] if thresholds else 0.5
                if again <= limit < again + x[column]:
                    kept.add(v)
            keep.append(frozenset(kept))
        return CutPlan(tuple(f.t for f in self.frames), tuple(keep[::-1]))

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
