"""Remove recomputations that a budget has room to avoid.

Knows how to take a repeated run out of an order: the earlier copies of its outputs live on instead.
Every removal keeps the order valid, within the budget and cheaper.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from planner.solvers.model.problem import Problem, held_bytes


def prune(
    problem: Problem, order: Sequence[int], budget: int, *, deadline: float = math.inf
) -> list[int]:
    """Return the order without the repeated runs that the budget has room to avoid.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
        deadline: of ``time.monotonic``, after which no more are looked for.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4)))
    >>> prune(flatten(g), [0, 0, 1], 7)
    [0, 1]
    """
    state = _State(problem, order, budget)
    improved = True
    while improved and time.monotonic() < deadline:
        improved = False
        for i in state.candidates():
            if time.monotonic() > deadline:
                break
            improved |= state.order[i] >= 0 and state.remove(i)
    return [op for op in state.order if op >= 0]


def without_run(problem: Problem, order: Sequence[int], position: int) -> list[int]:
    """Return the order without one repeated run, and those that only served it, at any budget.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        position: of a repeated run.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> without_run(flatten(Graph(ops, (Value("a", 3), Value("b", 4)))), [0, 0, 1, 0], 3)
    [0, 0, 1]
    """
    state = _State(problem, order, math.inf)
    state.remove(position)
    return [op for op in state.order if op >= 0]


class _State:
    """An order with holes (-1) and, for each value, where it is made and read."""

    def __init__(self, problem: Problem, order: Sequence[int], budget: float) -> None:
        self.p, self.budget = problem, budget
        self.order = list(order)
        self.held = held_bytes(problem, order)
        self.makes: list[list[int]] = [[] for _ in problem.sizes]
        self.reads: list[list[int]] = [[] for _ in problem.sizes]
        for i, op in enumerate(order):
            for v in problem.outputs[op]:
                self.makes[v].append(i)
            for v in problem.inputs[op]:
                self.reads[v].append(i)
        for v in problem.ends:
            self.reads[v].append(len(order))

    def candidates(self) -> list[int]:
        """Return the positions of repeated runs, those that save most for their bytes first."""
        seen: dict[int, int] = {}
        ranked = []
        for i, op in enumerate(self.order):
            if op < 0:
                continue
            if op in seen:
                added = sum(self.p.sizes[v] for v in self.p.outputs[op])
                weight = (1 + added) * (i - seen[op])
                ranked.append((-self.p.seconds[op] / weight, i))
            seen[op] = i
        ranked.sort()
        return [i for _, i in ranked]

    def remove(self, i: int) -> bool:
        """Take out the run at a position if the budget allows; say whether it did."""
        spans = [(v, self._last(v, self._made_before(v, i))) for v in self._read_after(i)]
        low = min((start for _, start in spans), default=i)
        extra = self.held[low + 1 : i].copy()
        for v, start in spans:
            extra[start - low :] += self.p.sizes[v]
        if len(extra) and extra.max() > self.budget:
            return False
        self.held[low + 1 : i] = extra
        self._erase(i)
        return True

    def _read_after(self, i: int) -> list[int]:
        """Return the outputs of the run at ``i`` that are read before they are made again."""
        return [v for v in self.p.outputs[self.order[i]] if self._last(v, i) != i]

    def _made_before(self, v: int, i: int) -> int:
        return self.makes[v][bisect_left(self.makes[v], i) - 1]

    def _last(self, v: int, made: int) -> int:
        """Return where the copy made at a position is last read; the position itself if never."""
        makes, reads = self.makes[v], self.reads[v]
        k = bisect_right(makes, made)
        stop = makes[k] if k < len(makes) else len(self.order) + 1
        r = bisect_left(reads, stop) - 1
        return reads[r] if r >= 0 and reads[r] > made else made

    def _erase(self, i: int) -> None:
        """Empty a position and, in turn, the repeated runs that only served it."""
        useless = [i]
        while useless:
            i = useless.pop()
            op, self.order[i] = self.order[i], -1
            self.held[i] = 0
            for v in self.p.outputs[op]:
                self.makes[v].remove(i)
            for v in self.p.inputs[op]:
                made = self._release(v, i)
                if self._repeated(made) and not self._read_after(made):
                    useless.append(made)

    def _release(self, v: int, i: int) -> int:
        """Forget that position ``i`` reads a value; return where the copy it read was made."""
        made = self._made_before(v, i)
        was = self._last(v, made)
        self.reads[v].remove(i)
        now = self._last(v, made)
        self.held[now + 1 : was + 1] -= self.p.sizes[v]
        return made

    def _repeated(self, i: int) -> bool:
        """Say whether all that the op at a position makes was made before."""
        return all(self.makes[v][0] < i for v in self.p.outputs[self.order[i]])
