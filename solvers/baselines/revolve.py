"""Griewank and Walther's revolve: the best use of a given number of slots on a chain.

Binomial checkpointing (ACM TOMS 26, 2000) is optimal in recomputed steps if all states weigh the
same and all steps take the same time. Any graph is read as a chain here: a state is everything that
crosses a position of the forward pass (see ``forward_cuts``), at the positions where little enough
crosses. The number of slots and that "little enough" are swept. On a graph that is no chain the
result is a valid schedule like any other, without the optimality.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from planner.graphs import Graph, schedule_from_order, simulate
from planner.solvers.api import Answer, Limits, register
from planner.solvers.baselines.sweep import cheapest, sizes_up_to
from planner.solvers.model.forward_cuts import crossing_bytes, spans
from planner.solvers.model.order_from_kept import ops_to_make, turning_point, without_unread
from planner.solvers.tuning import REVOLVE_MOST_RUNS, REVOLVE_WIDTHS


def advances(length: int, slots: int) -> int:
    """Return the least forward steps that reverse a chain, each step's last (taped) run left out.

    With ``r`` the least number such that ``length <= C(slots + r, slots)``, it is
    ``r * length - C(slots + r, slots + 1)``.

    >>> [advances(10, s) for s in (1, 2, 3, 10)]
    [45, 20, 15, 9]
    """
    r = _repetitions(length, slots)
    return r * length - math.comb(slots + r, slots + 1)


def _repetitions(length: int, slots: int) -> int:
    r = 0
    while math.comb(slots + r, slots) < length:
        r += 1
    return r


def _split(length: int, slots: int) -> int:
    """Return how far to advance before the next checkpoint, by Griewank and Walther's rule."""
    r = _repetitions(length, slots)
    return min(math.comb(slots + r - 1, slots), length - math.comb(slots + r - 2, slots - 1))


@register("revolve")
def revolve(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
    """Search the number of slots, for several widths of the positions that may become states.

    Args:
        graph, budget_bytes, limits: as for ``solve``.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 1.0))
    >>> revolve(Graph(ops, (Value("a", 3), Value("b", 4))), 7, Limits()).schedule.order
    (0, 1)
    """
    orders = _orders(graph, budget_bytes)
    return cheapest(graph, budget_bytes, orders, family="revolve", seconds=limits.seconds)


def _orders(graph: Graph, budget_bytes: int) -> Iterator[list[int]]:
    yield list(range(len(graph.ops)))
    turn = turning_point(graph)
    seen = set[tuple[int, ...]]()
    for width in _widths(crossing_bytes(graph, turn)[1:turn]):
        chain = _chain(graph, turn, width)
        if chain.bounds not in seen:
            seen.add(chain.bounds)
            yield from _bisect_slots(graph, chain, budget_bytes)


def _bisect_slots(graph: Graph, chain: _Chain, budget_bytes: int) -> Iterator[list[int]]:
    """Yield orders on the way to the most slots that fit; more slots cost less and hold more."""
    length = len(chain.bounds) - 1
    runs_a_step = chain.bounds[-1] / max(1, length)
    slots = [
        s for s in sizes_up_to(length) if advances(length, s) * runs_a_step <= REVOLVE_MOST_RUNS
    ]
    low, high = 0, len(slots)
    while low < high:
        middle = (low + high) // 2
        order = without_unread(graph, _Reversal(graph, chain).run(slots[middle]))
        yield order
        if simulate(graph, schedule_from_order(graph, order)).peak_bytes <= budget_bytes:
            low = middle + 1
        else:
            high = middle


def _widths(sizes: list[int]) -> list[int]:
    """Return a few of the sizes, from the least to the greatest."""
    ranked = sorted(set(sizes)) or [0]
    last = REVOLVE_WIDTHS - 1
    return sorted({ranked[(len(ranked) - 1) * k // last] for k in range(REVOLVE_WIDTHS)})


@dataclass(frozen=True)
class _Chain:
    """A graph as a chain: segment ``i`` is the ops from ``bounds[i]`` to ``bounds[i + 1]``.

    ``states[i]`` is what crosses ``bounds[i]``; ``backward[i]`` are the ops, in order, that run
    while the inside of segment ``i`` is at hand.
    """

    bounds: tuple[int, ...]
    states: tuple[frozenset[int], ...]
    backward: tuple[tuple[int, ...], ...]


def _chain(graph: Graph, turn: int, width: int) -> _Chain:
    sizes = crossing_bytes(graph, turn)
    bounds = (0, *(p for p in range(1, turn) if sizes[p] <= width), turn)
    states: list[set[int]] = [set() for _ in bounds]
    last_segment: dict[int, int] = {}  # of those where a forward value is at hand
    for index, op in enumerate(graph.ops[:turn]):
        last_segment |= dict.fromkeys(op.outputs, bisect_right(bounds, index) - 1)
    for value, maker, reader in spans(graph, turn):
        last_segment[value] = bisect_right(bounds, reader) - 1
        for i in range(bisect_right(bounds, maker), bisect_right(bounds, reader)):
            states[i].add(value)
    backward: list[list[int]] = [[] for _ in bounds[1:]]
    at = len(backward) - 1
    for index in range(turn, len(graph.ops)):
        at = min([at, *(last_segment.get(v, at) for v in graph.ops[index].inputs)])
        backward[at].append(index)
    return _Chain(bounds, tuple(map(frozenset, states)), tuple(map(tuple, backward)))


class _Reversal:
    """Write down the order of one reversal, with what is live on the way.

    ``stored`` counts the pending states that hold a value, ``fixed`` are values that are never
    dropped, ``fresh`` those to drop next unless stored or fixed.
    """

    def __init__(self, graph: Graph, chain: _Chain) -> None:
        self.graph, self.chain = graph, chain
        self.order: list[int] = []
        self.live: set[int] = set()
        self.fresh: set[int] = set()
        self.stored: Counter[int] = Counter()
        self.fixed: set[int] = set(graph.outputs)
        self.frontier = 0

    def run(self, slots: int) -> list[int]:
        """Reverse the chain with so many states stored at once, the first one included."""
        pending = [(0, len(self.chain.bounds) - 1, slots)]
        while pending:
            low, high, free = pending.pop()
            if high - low == 1:
                self._reverse(low)
                self.stored.subtract(self.chain.states[low])
                self.fresh |= self.chain.states[low]
            else:
                middle = low + _split(high - low, free)
                self._advance(middle)
                self.stored.update(self.chain.states[middle])
                pending += [(low, middle, free), (middle, high, free - 1)]
            self.live -= {v for v in self.fresh if not self.stored[v] and v not in self.fixed}
            self.fresh.clear()
        return self.order

    def _compute(self, ops: Iterable[int]) -> None:
        for index in ops:
            op = self.graph.ops[index]
            self.order.append(index)
            self.live.update(op.outputs)
            self.fresh.update(op.outputs)
            if index >= self.chain.bounds[-1] or not op.recomputable:
                self.fixed.update(op.outputs)

    def _advance(self, to: int) -> None:
        """Run up to a state: all ops the first time, then only what the state is made from."""
        bound = self.chain.bounds[to]
        self._compute(range(self.frontier, bound))
        self.frontier = max(self.frontier, bound)
        self._compute(ops_to_make(self.graph, self.chain.states[to], self.live))

    def _reverse(self, segment: int) -> None:
        """Run the backward ops of a segment, remaking what they read just before."""
        self._compute(range(self.frontier, self.chain.bounds[segment + 1]))
        self.frontier = max(self.frontier, self.chain.bounds[segment + 1])
        for index in self.chain.backward[segment]:
            self._compute(ops_to_make(self.graph, self.graph.ops[index].inputs, self.live))
            self._compute([index])
