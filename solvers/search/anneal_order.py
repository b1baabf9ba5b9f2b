"""An order of first runs that overshoots a budget less: simulated annealing over single moves.

Knows which moves the graph allows and what each does to the bytes held, in time linear in how far
an op moves. Knows nothing of recomputation: it runs every op once. Moves are counted and drawn from
a seed, so that the same graph gives the same order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.solvers.model.precedence import Freedom
from planner.solvers.model.problem import Problem, held_bytes
from planner.solvers.tuning import BYTE_WITHIN_BUDGET, COLDNESS, COOLING

Array = NDArray[np.float64]


def anneal_order(
    problem: Problem,
    free: Freedom,
    budget: int,
    *,
    moves: int,
    start: Sequence[int] | None = None,
    seed: int = 0,
) -> list[int]:
    """Return an order of all ops, each once, that overshoots the budget as little as was found.

    Args:
        problem: the step, flattened.
        free: which ops may run in another order.
        budget: in bytes.
        moves: how many to try.
        start: an order to begin with, by default the given one.
        seed: of every random choice.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.precedence import freedom
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (0,), (2,)),
    ...        Op("d", "f", (1,), (3,)))
    >>> g = Graph(ops, tuple(Value(x, size) for x, size in zip("abcd", (5, 5, 1, 1))))
    >>> anneal_order(flatten(g), freedom(g), 6, moves=50)
    [1, 3, 0, 2]
    """
    line = _Line(problem, start if start is not None else range(problem.n), budget)
    rng = random.Random(seed)
    best, best_cost, cost = line.order.copy(), line.total(), line.total()
    hot = max(cost, 1e-9) / COLDNESS
    for k in range(moves):
        if line.fits():
            break
        move = _draw(line, free, rng)
        if move is None:
            continue
        change = line.propose(*move)
        temperature = hot * COOLING ** (k / moves)
        if change.cost <= 0 or rng.random() < math.exp(-change.cost / temperature):
            line.accept(change)
            cost += change.cost
            if cost < best_cost - 1e-12:
                best, best_cost = line.order.copy(), cost
    return line.order if line.fits() else best


def best_arrangement(
    problem: Problem, free: Freedom, budget: int, *, moves: int, seed: int = 0
) -> list[int]:
    """Return the better of the orders found from the given one and from a greedy one.

    Args:
        problem: the step, flattened.
        free: which ops may run in another order.
        budget: in bytes.
        moves: how many to try.
        seed: of every random choice.
    """
    best, least = list(range(problem.n)), math.inf
    for start in (best, greedy(problem, free)):
        order = anneal_order(problem, free, budget, moves=moves, start=start, seed=seed)
        if (cost := overshoot(problem, order, budget)) < least:
            best, least = order, cost
    return best


def overshoot(problem: Problem, order: Sequence[int], budget: int) -> float:
    """Return by how many budgets an order is over it, added up over its steps.

    Args:
        problem: the step, flattened.
        order: the ops to run, repetitions included.
        budget: in bytes.
    """
    return float(np.maximum(held_bytes(problem, order) / max(budget, 1) - 1.0, 0.0).sum())


def greedy(problem: Problem, free: Freedom) -> list[int]:
    """Return the order that always runs next what adds the fewest bytes, given order first.

    >>> from planner.graphs import Graph, Op, Value
    >>> from planner.solvers.model.precedence import freedom
    >>> from planner.solvers.model.problem import flatten
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (), (1,)), Op("c", "f", (0,), (2,)),
    ...        Op("d", "f", (1,), (3,)))
    >>> g = Graph(ops, tuple(Value(x, size) for x, size in zip("abcd", (5, 6, 1, 1))))
    >>> greedy(flatten(g), freedom(g))
    [0, 2, 1, 3]
    """
    waiting = [len(befores) for befores in free.before]
    unread = [len(readers) for readers in problem.uses]
    left = {part: free.part.count(part) for part in set(free.part)}
    order: list[int] = []
    ready = {o for o in range(problem.n) if not waiting[o]}
    part = min(left, default=0)

    def added(o: int) -> tuple[int, int]:
        made = sum(problem.sizes[v] for v in problem.outputs[o] if problem.uses[v])
        return made - sum(problem.sizes[v] for v in problem.inputs[o] if unread[v] == 1), o

    while ready:
        while not left[part]:
            part = min(p for p in left if p > part)
        o = min((o for o in ready if free.part[o] == part), key=added)
        ready.remove(o)
        order.append(o)
        left[part] -= 1
        for v in problem.inputs[o]:
            unread[v] -= 1
        for later in free.after[o]:
            waiting[later] -= 1
            if not waiting[later]:
                ready.add(later)
    return order


class _Change:
    """A move worked out: the range it touches, what is there afterwards, and what it costs."""

    __slots__ = ("cost", "first", "grown", "held", "last_readers", "order", "own")

    def __init__(self, first: int, order: list[int]) -> None:
        self.first, self.order = first, order
        self.last_readers: dict[int, int] = {}
        self.grown: Array
        self.own: Array
        self.held: Array
        self.cost = 0.0


class _Line:
    """An order and, by position, what each op adds for good and what is held while it runs."""

    def __init__(self, problem: Problem, order: Sequence[int], budget: int) -> None:
        self.p, self.order = problem, list(order)
        self.position = [0] * problem.n
        for i, o in enumerate(self.order):
            self.position[o] = i
        unit = float(max(budget, 1))
        self.sizes = [size / unit for size in problem.sizes]
        self.ends = set(problem.ends)
        self.readers = [tuple(r for r in uses if r < problem.n) for uses in problem.uses]
        self.last: dict[int, int] = {}
        read = [[v for v in made if problem.uses[v]] for made in problem.outputs]
        grown = [sum(self.sizes[v] for v in made) for made in read]
        for v, readers in enumerate(self.readers):
            if readers and v not in self.ends and problem.maker[v] < problem.n:
                self.last[v] = max(readers, key=self.position.__getitem__)
                grown[self.last[v]] -= self.sizes[v]
        alone = [(problem.own(o) - problem.resident_bytes) / unit for o in range(problem.n)]
        self.grown = np.array([grown[o] for o in self.order])
        self.own = np.array([alone[o] for o in self.order])
        self.before = np.concatenate(([0.0], np.cumsum(self.grown)[:-1]))
        self.before += problem.resident_bytes / unit
        self.held = self.before + self.own

    def fits(self) -> bool:
        """Say whether nothing overshoots."""
        return bool(self.held.max(initial=0.0) <= 1.0 + 1e-12)

    def total(self) -> float:
        """Return what is minimized."""
        return _cost(self.held)

    def propose(self, p: int, q: int) -> _Change:
        """Work out what moving the op at ``p`` to ``q`` would do."""
        first, stop = min(p, q), max(p, q) + 1
        op, order = self.order[p], self.order[first:stop]
        order = [*order[1:], op] if q > p else [op, *order[:-1]]
        change = _Change(first, order)
        change.grown = _rotated(self.grown[first:stop], last_first=q < p)
        change.own = _rotated(self.own[first:stop], last_first=q < p)
        for v in self.p.inputs[op]:
            self._pass_on(change, v, op, p, q)
        summed = np.cumsum(change.grown)
        before = np.empty_like(summed)
        before[0] = 0.0
        before[1:] = summed[:-1]
        change.held = before + change.own + self.before[first]
        change.cost = _cost(change.held) - _cost(self.held[first:stop])
        return change

    def _pass_on(self, change: _Change, v: int, op: int, p: int, q: int) -> None:
        """Find which op reads a value last once ``op`` has moved."""
        old = self.last.get(v)
        if old is None:
            return
        new = old
        if q > p and old != op and self.position[old] <= q:
            new = op
        elif q < p and old == op:
            others = [r for r in self.readers[v] if r != op]
            new = max(others, key=self.position.__getitem__, default=op)
            new = op if self.position[new] < q else new
        if new != old:
            shift = -1 if q > p else 1
            for o, sign in ((old, 1.0), (new, -1.0)):
                at = q if o == op else self.position[o] + shift
                change.grown[at - change.first] += sign * self.sizes[v]
            change.last_readers[v] = new

    def accept(self, change: _Change) -> None:
        """Make a proposed move."""
        first, stop = change.first, change.first + len(change.order)
        self.order[first:stop] = change.order
        for i, o in enumerate(change.order, first):
            self.position[o] = i
        self.grown[first:stop] = change.grown
        self.own[first:stop] = change.own
        self.before[first:stop] = change.held - change.own
        self.held[first:stop] = change.held
        self.last.update(change.last_readers)


def _cost(held: Array) -> float:
    return float(np.maximum(held - 1.0, 0.0).sum() + BYTE_WITHIN_BUDGET * held.sum())


def _rotated(part: Array, *, last_first: bool) -> Array:
    found = np.empty_like(part)
    if last_first:
        found[1:], found[0] = part[:-1], part[-1]
    else:
        found[:-1], found[-1] = part[1:], part[0]
    return found


def _draw(line: _Line, free: Freedom, rng: random.Random) -> tuple[int, int] | None:
    """Return a random op's position and another it may move to, ``None`` if it has none."""
    p = rng.randrange(line.p.n)
    op, position = line.order[p], line.position
    first, stop = free.spans[free.part[op]]
    low = max((position[u] + 1 for u in free.before[op]), default=first)
    high = min((position[u] - 1 for u in free.after[op]), default=stop - 1)
    low, high = max(low, first), min(high, stop - 1)
    if low >= high:
        return None
    q = rng.randrange(low, high)
    return p, q + (q >= p)
