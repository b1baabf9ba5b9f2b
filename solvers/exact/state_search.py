"""The optimum of a tiny graph, proven: A* over what is live and how far the step has come.

Exact for every schedule whose first runs follow the graph's order, whatever it recomputes and in
whichever order. A state is the next op to run for the first time and the set of values held, one
bit each. Values are dropped only to make room, for which some minimal set of them suffices; those
that can serve no more are dropped at once. The ops that must run again, whatever happens, to bring
back what the ops to come read are a lower bound on the way that is left.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from planner.graphs import Graph
from planner.solvers.api import Answer, Limits, Status, register
from planner.solvers.model.problem import Problem, flatten
from planner.solvers.tuning import MOST_EXACT_OPS, MOST_STATES

State = tuple[int, int]
"""The next op to run for the first time, and the values held, as bits."""


@dataclass(frozen=True, slots=True)
class StateSearchResult:
    """What a search proved: the order of least time (``None``: none fits, or it gave up)."""

    order: list[int] | None
    bound: float
    """A lower bound on the extra seconds; ``inf`` if nothing fits."""
    finished: bool


@register("exact")
def exact(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Search every set of live values that the budget allows, most promising first.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (), (1,), 1.0), Op("c", "f", (0,), (2,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4), Value("c", 1)))
    >>> exact(g, 6, Limits()).schedule.order, exact(g, 3, Limits()).status.name
    ((0, 1, 0, 2), 'INFEASIBLE')
    """
    del limits  # the states are counted, not timed
    if len(graph.ops) > MOST_EXACT_OPS:
        message = f"exact: {len(graph.ops)} ops are too many; use method='auto'"
        return Answer(Status.UNKNOWN, None, message=message)
    found = search_states(flatten(graph), budget_bytes)
    seconds = graph.seconds + found.bound
    if found.order is not None:
        message = "exact: every state was considered"
        return Answer.of_order(graph, Status.OPTIMAL, found.order, seconds, message)
    if found.finished:
        return Answer(Status.INFEASIBLE, None, math.inf, "exact: no sequence of states fits")
    message = f"exact: gave up after {MOST_STATES} states; use method='auto'"
    return Answer(Status.UNKNOWN, None, seconds, message)


def search_states(problem: Problem, budget: int, *, states: int = MOST_STATES) -> StateSearchResult:
    """Return the order of least time within a budget, or what is known after so many states.

    Args:
        problem: the step, flattened.
        budget: in bytes.
        states: how many to look at.
    """
    space = _Space(problem, budget)
    start: State = (0, 0)
    costs, parents = {start: 0.0}, dict[State, tuple[State, int]]()
    queue = [(space.distance(start), 0, start)]
    seen, closed = 0, set[State]()
    while queue:
        bound, _, state = heapq.heappop(queue)
        if state in closed:
            continue
        if space.is_goal(state):
            return StateSearchResult(_way(parents, state), bound, finished=True)
        closed.add(state)
        for op, after in space.moves(state):
            if (seen := seen + 1) > states:
                return StateSearchResult(None, bound, finished=False)
            cost = costs[state] + (problem.seconds[op] if op < state[0] else 0.0)
            if cost < costs.get(after, math.inf) and (left := space.distance(after)) < math.inf:
                costs[after], parents[after] = cost, (state, op)
                heapq.heappush(queue, (cost + left, -after[0], after))
    return StateSearchResult(None, math.inf, finished=True)


def _way(parents: dict[State, tuple[State, int]], state: State) -> list[int]:
    """Return the ops that lead from the start to a state."""
    order: list[int] = []
    while state in parents:
        state, op = parents[state]
        order.append(op)
    return order[::-1]


def _bits(values: tuple[int, ...]) -> int:
    return sum(1 << v for v in values)


class _Space:
    """The states of a problem within a budget, and the ways between them."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.p, self.room = problem, budget - problem.resident_bytes
        self.inputs = [_bits(values) for values in problem.inputs]
        self.outputs = [_bits(values) for values in problem.outputs]
        self.future = [self._future(frontier) for frontier in range(problem.n + 1)]
        self.useful = [self._useful(frontier) for frontier in range(problem.n + 1)]
        self.distance = cache(self._distance)
        self.weight = cache(self._weight)

    def is_goal(self, state: State) -> bool:
        """Say whether every op has run and every output is held."""
        return state[0] == self.p.n and not self.future[self.p.n] & ~state[1]

    def moves(self, state: State) -> Iterator[tuple[int, State]]:
        """Yield each op that can run next, with the state it leaves."""
        frontier, live = state
        for op in range(min(frontier + 1, self.p.n)):
            first = op == frontier
            lacking = self.outputs[op] & self.useful[frontier] & ~live
            if self.inputs[op] & ~live or not (first or (lacking and self.p.recomputable[op])):
                continue
            need = self.weight(self.outputs[op]) + self.p.workspace[op] - self.room
            after = frontier + first
            for rest in self._evictions(live & ~self.inputs[op], need + self.weight(live)):
                held = live & self.inputs[op] | rest | self.outputs[op]
                yield op, (after, held & self.useful[after])

    def _evictions(self, free: int, short: int) -> Iterator[int]:
        """Yield what is left of the free values after each minimal way to drop enough bytes."""
        values = [v for v in _indices(free) if self.p.sizes[v]]
        values.sort(key=lambda v: -self.p.sizes[v])
        total = sum(self.p.sizes[v] for v in values)
        stack = [(0, short, total, free)]
        while stack:
            i, missing, left, rest = stack.pop()
            if missing <= 0:
                yield rest
            elif left >= missing:
                size = self.p.sizes[values[i]]
                stack.append((i + 1, missing, left - size, rest))
                stack.append((i + 1, missing - size, left - size, rest & ~(1 << values[i])))

    def _weight(self, values: int) -> int:
        return sum(self.p.sizes[v] for v in _indices(values))

    def _distance(self, state: State) -> float:
        """Return the seconds of the ops that must run again; ``inf`` if one of them may not."""
        missing, again, back = self.future[state[0]] & ~state[1], 0, state[1]
        while missing:
            op = self.p.maker[missing.bit_length() - 1]
            if not self.p.recomputable[op]:
                return math.inf
            again |= 1 << op
            back |= self.outputs[op]
            missing = (missing | self.inputs[op]) & ~back
        return sum(self.p.seconds[op] for op in _indices(again))

    def _future(self, frontier: int) -> int:
        """Return the values made before an op that first runs from it on read, or the end needs."""
        reads = _bits(self.p.ends)
        for op in range(frontier, self.p.n):
            reads |= self.inputs[op]
        for op in range(frontier, self.p.n):
            reads &= ~self.outputs[op]
        return reads

    def _useful(self, frontier: int) -> int:
        """Return the values that serve a later first run, or help to make one that does."""
        useful = self.future[frontier]
        for op in reversed(range(frontier)):
            if useful & self.outputs[op] and self.p.recomputable[op]:
                useful |= self.inputs[op]
        return useful


def _indices(bits: int) -> list[int]:
    return [i for i in range(bits.bit_length()) if bits >> i & 1]
