"""The exact optimum where values may also move to the host, by search over states, for <= 7 ops.

Every step of a schedule is a move, under the rules of ``graphs.simulate``; how long copies still
take is part of a state. The end of a step is the device's. First runs keep the graph's order.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.graphs import Graph
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.host_memory import movable

Times = tuple[tuple[int, float], ...]


@dataclass(frozen=True, order=True)
class _State:
    """Times are from the device's clock on: of a copy out, of one back, of each link."""

    frontier: int
    live: frozenset[int]
    host: Times
    arriving: Times
    out: float
    back: float

    def after(self, seconds: float) -> _State:
        left = lambda times: tuple((v, max(0.0, t - seconds)) for v, t in times)  # noqa: E731
        arriving = tuple((v, t) for v, t in left(self.arriving) if t > 0)
        return replace(
            self,
            host=left(self.host),
            arriving=arriving,
            out=max(0.0, self.out - seconds),
            back=max(0.0, self.back - seconds),
        )


def brute_host(graph: Graph, budget_bytes: int, tier: HostTier) -> float:
    """Return the least seconds of a schedule of the three choices, ``inf`` if there is none."""
    assert len(graph.ops) <= 7, "brute force is for small graphs"
    space = _Space(graph, budget_bytes, tier)
    start = _State(0, frozenset(), (), (), 0.0, 0.0)
    best, queue, count = {start: 0.0}, [(space.left(start), 0, 0.0, start)], 0
    goal = graph.outputs - graph.resident
    while queue:
        _, _, seconds, state = heapq.heappop(queue)
        if seconds > best[state]:
            continue
        if state.frontier == len(graph.ops) and goal <= state.live:
            return seconds
        for cost, made in space.moves(state):
            after = space.trimmed(made)
            if seconds + cost < best.get(after, math.inf) - 1e-12:
                best[after] = seconds + cost
                count += 1
                guess = seconds + cost + space.left(after)
                heapq.heappush(queue, (guess, count, seconds + cost, after))
    return math.inf


class _Space:
    def __init__(self, graph: Graph, budget: int, tier: HostTier) -> None:
        self.graph, self.budget, self.tier = graph, budget, tier
        self.size = [v.size_bytes for v in graph.values]
        self.movable = movable(graph)
        n = len(graph.ops)
        self.useful = []
        for f in range(n + 1):
            found = set(graph.outputs)
            found |= {v for op in graph.ops[f:] for v in op.inputs}
            for op in reversed(graph.ops[:f]):
                if found.intersection(op.outputs) and op.recomputable:
                    found |= set(op.inputs)
            self.useful.append(found)

    def left(self, state: _State) -> float:
        return sum(op.seconds for op in self.graph.ops[state.frontier :])

    def trimmed(self, state: _State) -> _State:
        """Leave out what serves nothing any more and costs nothing to leave out."""
        useful = self.useful[state.frontier]
        host = tuple((v, t) for v, t in state.host if v in useful or t > 0)
        busy = {v for v, t in (*host, *state.arriving) if t > 0}
        return replace(
            state, host=host, live=frozenset(v for v in state.live if v in useful or v in busy)
        )

    def held(self, live: frozenset[int]) -> int:
        return self.graph.resident_bytes + sum(self.size[v] for v in live)

    def moves(self, state: _State) -> Iterator[tuple[float, _State]]:
        host, arriving = dict(state.host), dict(state.arriving)
        for v in state.live:
            wait = max(host.get(v, 0.0), arriving.get(v, 0.0))
            yield wait, replace(state.after(wait), live=state.live - {v})
        yield from self._computes(state, host, arriving)
        for v in self.movable:
            if v in state.live and v not in host and v not in arriving:
                end = state.out + self.size[v] / self.tier.to_host
                yield 0.0, replace(state, host=tuple(sorted((host | {v: end}).items())), out=end)
            room = self.held(state.live) + self.size[v] <= self.budget
            if v in host and v not in state.live and room:
                end = state.back + self.size[v] / self.tier.from_host
                there = tuple(sorted((u, t) for u, t in host.items() if u != v))
                back = tuple(sorted((arriving | {v: end}).items()))
                live = state.live | {v}
                yield 0.0, replace(state, host=there, arriving=back, live=live, back=end)

    def _computes(
        self, state: _State, host: dict[int, float], arriving: dict[int, float]
    ) -> Iterator[tuple[float, _State]]:
        resident = self.graph.resident
        for i, op in enumerate(self.graph.ops[: state.frontier + 1]):
            first = i == state.frontier
            made = sum(self.size[v] for v in op.outputs) + op.workspace_bytes
            ready = set(op.inputs) - resident <= state.live
            fits = self.held(state.live) + made <= self.budget
            if not (ready and fits and (first or op.recomputable)):
                continue
            wait = max((arriving.get(v, 0.0) for v in (*op.inputs, *op.outputs)), default=0.0)
            replaced = (host.get(v, 0.0) for v in op.outputs if v in state.live)
            wait = max(wait, *replaced, 0.0)
            after = state.after(wait + op.seconds)
            live = after.live | set(op.outputs)
            yield wait + op.seconds, replace(after, live=live, frontier=state.frontier + first)
