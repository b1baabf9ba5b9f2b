"""Make an order fit a budget: run it on paper, evict what costs least, recompute on demand.

Knows every later use in the order, so it evicts with foresight; recomputation nests, and what a
recomputation holds counts.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import product

from planner.solvers.model.problem import Problem
from planner.solvers.tuning import (
    CLOCK_EVERY,
    DEEPEST_NESTING,
    LONGER_ORDER,
    LONGER_ORDER_RUNS,
    PATIENCES,
)


class _Stuck(Exception):
    """What must be live at once exceeds the budget, the order grows too long, or time is over."""


def fit(
    problem: Problem,
    order: Sequence[int],
    budget: int,
    *,
    patience: float = 0.0,
    most_seconds: float = math.inf,
    deadline: float = math.inf,
) -> list[int] | None:
    """Return an order that fits the budget, close to the given one; ``None`` if none was found.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
        patience: values are evicted by seconds per byte, divided by the wait until the next read,
            in positions, to this power.
        most_seconds: what repeated runs may take before giving up.
        deadline: of ``time.monotonic``, at which to give up.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.problem import flatten
    >>> chain = [Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)), Op("c", "f", (0, 1), (2,)),
    ...          Op("d", "f", (2,), (3,)), Op("e", "f", (0, 3), (4,))]
    >>> g = Graph(tuple(chain), tuple(Value(x, 1) for x in "abcde"), frozenset({4}))
    >>> fit(flatten(g), range(5), 3)
    [0, 1, 2, 3, 4]
    """
    run = _Eviction(problem, order, budget, patience, most_seconds, deadline=deadline)
    try:
        for position, op in enumerate(order):
            run.step(position, op)
        run.finish(len(order))
    except _Stuck:
        return None
    return run.done


def fit_any(
    problem: Problem,
    orders: Iterable[Sequence[int]],
    budget: int,
    *,
    patiences: Sequence[float] = PATIENCES,
    deadline: float = math.inf,
) -> list[int] | None:
    """Return the first of these orders, ranked in each of these ways, that can be made to fit.

    Args:
        problem: the step, flattened.
        orders: the orders to try.
        budget: in bytes.
        patiences: ways to rank, tried in turn.
        deadline: of ``time.monotonic``.
    """
    for order, patience in product(orders, patiences):
        fitted = fit(problem, order, budget, patience=patience, deadline=deadline)
        if fitted is not None:
            return fitted
    return None


class _Eviction:
    """The state of one run: what is live, what is pinned, what was done."""

    def __init__(
        self,
        problem: Problem,
        order: Sequence[int],
        budget: int,
        patience: float,
        seconds_left: float,
        *,
        deadline: float = math.inf,
    ) -> None:
        self.p, self.patience, self.seconds_left = problem, patience, seconds_left
        self.deadline = deadline
        self.max_steps = LONGER_ORDER * len(order) + LONGER_ORDER_RUNS
        self.space = budget - problem.resident_bytes
        self.live: set[int] = set()
        self.ranked: list[tuple[float, int]] = []
        self.parked: set[int] = set()
        self.unparked = -1
        self.evicted: set[int] = set()
        self.used = 0
        self.seen: set[int] = set()
        self.pinned: dict[int, int] = {}
        self.pending: dict[int, int] = {}
        self.debt: dict[int, float] = {}
        self.done: list[int] = []
        self.position = self.depth = 0
        self.reads: list[list[int]] = [[] for _ in problem.sizes]
        self.makes: list[list[int]] = [[] for _ in problem.sizes]
        for i, op in enumerate(order):
            for v in problem.inputs[op]:
                self.reads[v].append(i)
            for v in problem.outputs[op]:
                self.makes[v].append(i)
        for v in problem.ends:
            self.reads[v].append(len(order))

    def step(self, position: int, op: int) -> None:
        """Run the op at a position of the order, unless its outputs are there already."""
        self.position = position
        again = op in self.seen
        if again and all(v in self.live or not self._wanted(v) for v in self.p.outputs[op]):
            self._sweep(self.p.inputs[op])
            return
        self._compute(op)

    def finish(self, position: int) -> None:
        """Bring back what must be live at the end."""
        self.position = position
        self.pinned.update(dict.fromkeys(self.p.ends, 1))
        if missing := [v for v in self.p.ends if v not in self.live]:
            self._bring_back(missing)

    def _wanted(self, v: int) -> int:
        """Return the position of the next read of the copy held now, 0 if there is none."""
        reads, makes = self.reads[v], self.makes[v]
        i = bisect_right(reads, self.position)
        if i == len(reads):
            return 0
        j = bisect_right(makes, self.position)
        return 0 if j < len(makes) and makes[j] < reads[i] else reads[i]

    def _compute(self, op: int) -> None:
        """Bring back the inputs of an op, pin them, run it."""
        inputs = self.p.inputs[op]
        for v in inputs:
            self.pinned[v] = self.pinned.get(v, 0) + 1
        missing = [v for v in inputs if v not in self.live]
        if missing:
            self._bring_back(missing)
        self._execute(op)
        for v in inputs:
            self.pinned[v] -= 1
            if not self.pinned[v]:
                del self.pinned[v]
        self._sweep((*inputs, *self.p.outputs[op]))

    def _bring_back(self, missing: list[int]) -> None:
        """Recompute values: the closure of their missing ancestors, in the graph's order."""
        burst = self._closure(missing)
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            raise _Stuck
        for op in burst:
            for v in self.p.inputs[op]:
                self.pending[v] = self.pending.get(v, 0) + 1
        for op in burst:
            outputs = self.p.outputs[op]
            if any(v not in self.live and self._useful(v) for v in outputs):
                self._compute(op)
            for v in self.p.inputs[op]:
                self.pending[v] -= 1
                if not self.pending[v]:
                    del self.pending[v]
            self._sweep(self.p.inputs[op])
        self.depth -= 1

    def _useful(self, v: int) -> bool:
        return v in self.pinned or v in self.pending

    def _closure(self, missing: Iterable[int]) -> list[int]:
        found: set[int] = set()
        stack = list(missing)
        while stack:
            op = self.p.maker[stack.pop()]
            if op in found:
                continue
            if not self.p.recomputable[op]:
                raise _Stuck
            found.add(op)
            stack += [u for u in self.p.inputs[op] if u not in self.live]
        return sorted(found)

    def _execute(self, op: int) -> None:
        p = self.p
        fresh = [v for v in p.outputs[op] if v not in self.live]
        twice = sum(p.sizes[v] for v in p.outputs[op] if v in self.live)
        made = sum(p.sizes[v] for v in fresh)
        self._make_room(made + twice + p.workspace[op])
        self.live.update(fresh)
        for v in fresh:
            self._push(v)
        self.used += made
        if op in self.seen:
            self.seconds_left -= p.seconds[op]
        self.seen.add(op)
        self.done.append(op)
        if len(self.done) > self.max_steps or self.seconds_left < 0:
            raise _Stuck
        if len(self.done) % CLOCK_EVERY == 0 and time.monotonic() > self.deadline:
            raise _Stuck

    def _make_room(self, needed: int) -> None:
        """Evict, cheapest first; what the running recomputation is about to read goes last."""
        aside: list[int] = []
        short = self.used + needed > self.space
        if short and self.parked and self.unparked < self.position:  # once a position: it is slow
            self.unparked = self.position
            self._unpark()
        while self.used + needed > self.space:
            if not self.ranked:
                self.evicted.add(v := self._last_resort(aside))
                self._drop(v)
                continue
            score, v = heappop(self.ranked)
            if v not in self.live:
                continue
            now = self._score(v)
            if v in self.pinned or v in self.pending or now == math.inf:
                aside.append(v)
            elif now > score and self.ranked and now > self.ranked[0][0]:
                heappush(self.ranked, (now, v))
            else:
                self.evicted.add(v)
                self._drop(v)
        for v in aside:
            self._push(v)

    def _push(self, v: int) -> None:
        """Rank a live value for eviction; a rank is refreshed when popped, most only grow."""
        if v in self.live and self.p.sizes[v] and (score := self._score(v)) < math.inf:
            heappush(self.ranked, (score, v))

    def _last_resort(self, aside: list[int]) -> int:
        """Return the cheapest value that is only pending, not pinned."""
        free = [
            v
            for v in aside
            if v in self.live and v not in self.pinned and self._score(v) < math.inf
        ]
        if not free:
            raise _Stuck
        return min(free, key=lambda v: (self._score(v), v))

    def _score(self, v: int) -> float:
        wait = (self._wanted(v) or self.position + 1) - self.position if self.patience else 1
        return (self._cost(v) + 1e-12) / (self.p.sizes[v] * float(wait**self.patience))

    def _cost(self, v: int) -> float:
        """Return about what bringing a value back would cost: its op and its missing ancestors.

        Infinity if it cannot come back: an op that may not run twice lies on the way.
        """
        op = self.p.maker[v]
        if not self.p.recomputable[op]:
            return math.inf
        return self.p.seconds[op] + sum(
            self.debt.get(u, 0.0) for u in self.p.inputs[op] if u not in self.live
        )

    def _drop(self, v: int) -> None:
        self.debt[v] = self._cost(v)
        self.live.remove(v)
        self.used -= self.p.sizes[v]

    def _sweep(self, values: Iterable[int]) -> None:
        """Free the values that nothing will read before they are made again."""
        for v in values:
            if v in self.live and not self._useful(v) and not self._wanted(v):
                if self._cost(v) < math.inf:
                    self._drop(v)
                else:
                    self.parked.add(v)

    def _unpark(self) -> None:
        """Free what cannot come back and nothing evicted needs for its own return."""
        needed, seen = set[int](), set[int]()
        self.evicted = {v for v in self.evicted if v not in self.live and self._wanted(v)}
        stack = list(self.evicted)
        while stack:
            for u in self.p.inputs[self.p.maker[stack.pop()]]:
                if u in self.live:
                    needed.add(u)
                elif u not in seen:
                    seen.add(u)
                    stack.append(u)
        for v in sorted(self.parked - needed):
            if not self._useful(v) and not self._wanted(v):
                self.parked.discard(v)
                if v in self.live:
                    self._drop(v)
                    self._bury(v)

    def _bury(self, v: int) -> None:
        """Note that a value is gone for good, and so are the missing values made from it."""
        self.debt[v] = math.inf
        stack = [v]
        while stack:
            readers = [op for op in self.p.uses[stack.pop()] if op < self.p.n]
            for u in (u for op in readers for u in self.p.outputs[op]):
                if u not in self.live and u in self.debt and self.debt[u] < math.inf:
                    self.debt[u] = math.inf
                    stack.append(u)
