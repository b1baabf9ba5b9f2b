"""The oracle's oracle: the exact optimum by Dijkstra over sets of live values, for <= 10 ops."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.graphs import Graph


@dataclass(frozen=True, slots=True, order=True)
class _State:
    live: int
    """The non-resident values held, one bit each."""
    frontier: int
    """The next op to run for the first time."""
    last: int
    """The op that ran last in this pass, -1 if none; always -1 if passes are not limited."""
    passes: int
    """The passes begun since the frontier moved, 1 at least; always 1 if they are not limited."""


def brute(graph: Graph, budget_bytes: int, *, passes: int | None = None) -> float:
    """Return the least seconds of a schedule within the budget, ``inf`` if there is none.

    The class: first computations follow the given order; recomputations are free to happen in any
    order and number. ``passes`` narrows it: between two first computations the graph is passed
    through, in its order, so many times, and one pass runs an op at most once. One pass is
    Checkmate's class.
    """
    assert len(graph.ops) <= 10, "brute force is for small graphs"
    start, goal = _State(0, 0, -1, 1), _mask(graph.outputs - graph.resident)
    best, queue = {start: 0.0}, [(0.0, start)]
    while queue:
        seconds, state = heapq.heappop(queue)
        if seconds > best[state]:
            continue
        if state.frontier == len(graph.ops) and state.live & goal == goal:
            return seconds
        for cost, after in _moves(graph, budget_bytes, state, passes=passes):
            if seconds + cost < best.get(after, math.inf):
                best[after] = seconds + cost
                heapq.heappush(queue, (seconds + cost, after))
    return math.inf


def _mask(values: frozenset[int]) -> int:
    return sum(1 << v for v in values)


def _bytes(graph: Graph, live: int) -> int:
    return sum(value.size_bytes for v, value in enumerate(graph.values) if live >> v & 1)


def _moves(
    graph: Graph, budget_bytes: int, state: _State, *, passes: int | None
) -> Iterator[tuple[float, _State]]:
    for v in range(len(graph.values)):
        if state.live >> v & 1:
            yield 0.0, replace(state, live=state.live & ~(1 << v))
    held = graph.resident_bytes + _bytes(graph, state.live)
    for i, op in enumerate(graph.ops[: state.frontier + 1]):
        first = i == state.frontier
        passed = state.passes + (not first and i <= state.last)
        if not first and (not op.recomputable or passed > (passes or 1)):
            continue
        inputs, outputs = _mask(frozenset(op.inputs) - graph.resident), _mask(frozenset(op.outputs))
        fits = held + _bytes(graph, outputs) + op.workspace_bytes <= budget_bytes
        if fits and state.live & inputs == inputs:
            live, last = state.live | outputs, i if passes else -1
            after = (state.frontier + 1, -1, 1) if first else (state.frontier, last, passed)
            yield op.seconds, _State(live, *after)


def brute_any_order(graph: Graph, budget_bytes: int, before: Sequence[int]) -> float:
    """Return the least seconds in any order; op ``o`` first runs after those of ``before[o]``.

    ``before`` are sets of ops as bits.
    """
    assert len(graph.ops) <= 8, "brute force is for small graphs"
    goal, everything = _mask(graph.outputs - graph.resident), (1 << len(graph.ops)) - 1
    best, queue = {(0, 0): 0.0}, [(0.0, 0, 0)]
    while queue:
        seconds, done, live = heapq.heappop(queue)
        if seconds > best[done, live]:
            continue
        if done == everything and live & goal == goal:
            return seconds
        after = [(0.0, done, live & ~(1 << v)) for v in range(len(graph.values)) if live >> v & 1]
        held = graph.resident_bytes + _bytes(graph, live)
        for i, op in enumerate(graph.ops):
            inputs, outputs = (
                _mask(frozenset(found) - graph.resident) for found in (op.inputs, op.outputs)
            )
            allowed = op.recomputable if done >> i & 1 else not before[i] & ~done
            fits = held + _bytes(graph, outputs) + op.workspace_bytes <= budget_bytes
            if allowed and fits and live & inputs == inputs:
                after.append((op.seconds, done | 1 << i, live | outputs))
        for cost, *state in after:
            if seconds + cost < best.get((state[0], state[1]), math.inf):
                best[state[0], state[1]] = seconds + cost
                heapq.heappush(queue, (seconds + cost, state[0], state[1]))
    return math.inf
