"""The oracle's oracle: the exact optimum by Dijkstra over sets of live values, for <= 10 ops."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphs import Graph


@dataclass(frozen=True, slots=True, order=True)
class _State:
    live: int
    """The non-resident values held, one bit each."""
    frontier: int
    """The next op to run for the first time."""
    last: int
    """The op that ran last since the frontier moved, -1 if none; always -1 if not staged."""


def brute(graph: Graph, budget_bytes: int, *, staged: bool = False) -> float:
    """Return the least seconds of a schedule within the budget, ``inf`` if there is none.

    The class: first computations follow the given order; recomputations are free to happen in any
    order and number. ``staged`` narrows it to Checkmate's: between two first computations each op
    is recomputed at most once and in the graph's order.
    """
    assert len(graph.ops) <= 10, "brute force is for small graphs"
    start, goal = _State(0, 0, -1), _mask(graph.outputs - graph.resident)
    best, queue = {start: 0.0}, [(0.0, start)]
    while queue:
        seconds, state = heapq.heappop(queue)
        if seconds > best[state]:
            continue
        if state.frontier == len(graph.ops) and state.live & goal == goal:
            return seconds
        for cost, after in _moves(graph, budget_bytes, state, staged=staged):
            if seconds + cost < best.get(after, math.inf):
                best[after] = seconds + cost
                heapq.heappush(queue, (seconds + cost, after))
    return math.inf


def _mask(values: frozenset[int]) -> int:
    return sum(1 << v for v in values)


def _bytes(graph: Graph, live: int) -> int:
    return sum(value.size_bytes for v, value in enumerate(graph.values) if live >> v & 1)


def _moves(
    graph: Graph, budget_bytes: int, state: _State, *, staged: bool
) -> Iterator[tuple[float, _State]]:
    for v in range(len(graph.values)):
        if state.live >> v & 1:
            yield 0.0, _State(state.live & ~(1 << v), state.frontier, state.last)
    held = graph.resident_bytes + _bytes(graph, state.live)
    for i, op in enumerate(graph.ops[: state.frontier + 1]):
        first = i == state.frontier
        if not first and (not op.recomputable or i <= state.last):
            continue
        inputs, outputs = _mask(frozenset(op.inputs) - graph.resident), _mask(frozenset(op.outputs))
        fits = held + _bytes(graph, outputs) + op.workspace_bytes <= budget_bytes
        if fits and state.live & inputs == inputs:
            last = i if staged and not first else -1
            yield op.seconds, _State(state.live | outputs, state.frontier + first, last)
