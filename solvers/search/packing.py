"""The same ops at the same cost, with fewer holes in the memory that they run in.

An allocator puts a block into the smallest hole that is large enough, so what lies beside what
depends on the order in which blocks come and go. Where the tensors leave room, a value may be kept
a little longer, and an op may run a little earlier or later: neither costs time. Such moves are
drawn at random, and kept if an allocator that runs the schedule lacks no more bytes than before, or
few more (simulated annealing): one hole is often closed by opening another first. Knows nothing of
budgets, nor of what else would fit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from planner.graphs import Action, Graph, Schedule
from planner.graphs.allocation import Event, first_failure, kept_bytes, training_events
from planner.graphs.hardware.allocators import SMALL, Block, CachingAllocator
from planner.solvers.model.precedence import may_reorder
from planner.solvers.search.free_moves import FreeMoves
from planner.solvers.tuning import (
    PACKING_EVENTS,
    PACKING_HEAT,
    PACKING_PATIENCE,
    PACKING_SIZES,
)


def packed(
    graph: Graph,
    schedule: Schedule,
    budget_bytes: int,
    *,
    expandable: bool,
    reorder: bool = False,
    events: int = PACKING_EVENTS,
    seed: int = 0,
) -> Schedule | None:
    """Return a schedule of the same ops that runs on a device of so many bytes, if one is found.

    Args:
        graph, schedule: what runs.
        budget_bytes: what the device has, with what it keeps for itself.
        expandable: whether its allocator has expandable segments.
        reorder: whether first runs may be exchanged, too, and not only recomputations be moved.
        events: how many blocks may be taken and given back, trials together.
        seed: of the moves tried.

    >>> from planner.graphs import Op, Value, plain_schedule
    >>> values = tuple(Value("v", size << 20) for size in (30, 21, 50, 21, 30, 41))
    >>> reads = [(), (0,), (1,), (2,), (1,), (2, 4)]
    >>> ops = tuple(Op(f"op{i}", "f", inputs, (i,)) for i, inputs in enumerate(reads))
    >>> graph = Graph(ops, values, frozenset({5}))
    >>> schedule = plain_schedule(graph)
    >>> first_failure(graph, schedule, 140 << 20, expandable=True) is None
    False
    >>> better = packed(graph, schedule, 140 << 20, expandable=True)
    >>> first_failure(graph, better, 140 << 20, expandable=True) is None
    True
    """
    if any(step.action not in {Action.COMPUTE, Action.FREE} for step in schedule.steps):
        return None
    large = [v.size_bytes > SMALL for v in graph.values]
    moves = FreeMoves(graph, random.Random(seed), large, reorder=reorder and may_reorder(graph))
    search = _Search(moves, events, expandable=expandable)
    below = kept_bytes(graph) + search.small_bytes(schedule)
    failed = set[int]()
    found: Schedule | None = schedule
    while found is not None and len(failed) < PACKING_SIZES:
        at = first_failure(graph, found, budget_bytes, expandable=expandable)
        if at is None:
            return found
        if at in failed:  # not for lack of what is searched for
            return None
        failed.add(at)
        found = search.lacking_nothing(found, [size - below for size in sorted(failed)])
    return None


class _Search:
    """Schedules that differ by moves, and what their blocks of more than ``SMALL`` bytes lack."""

    def __init__(self, moves: FreeMoves, events: int, *, expandable: bool) -> None:
        self.moves, self.graph, self.left, self.expandable = moves, moves.graph, events, expandable

    def small_bytes(self, schedule: Schedule) -> int:
        """Return what the pool of small blocks takes, which no move is about."""
        pool = CachingAllocator(expandable=self.expandable)
        _run(training_events(self.graph, schedule), pool, large=False)
        return pool.peak_reserved

    def lacking_nothing(self, schedule: Schedule, rooms: list[int]) -> Schedule | None:
        """Move until the large blocks lack nothing in every one of these rooms."""
        lacks = self._lacked(schedule, rooms, None)
        heat, whole, idle = PACKING_HEAT * lacks, self.left, 0
        while lacks and self.left > 0 and idle < PACKING_PATIENCE:
            steps = list(schedule.steps)
            if not self.moves.make(steps):
                idle += 1
                continue
            more = -math.log(1 - self.moves.draw.random()) * heat * self.left / whole
            other = Schedule(tuple(steps))
            lacked = self._lacked(other, rooms, lacks + int(more))
            if lacked <= lacks + more:
                schedule, lacks, idle = other, lacked, 0
        return None if lacks else schedule

    def _lacked(self, schedule: Schedule, rooms: list[int], best: int | None) -> int:
        """Return by how much the rooms are too small, or more than ``best`` if that is sure."""
        total = 0
        for room in rooms:
            allocator = CachingAllocator(room, expandable=self.expandable, lenient=True)
            stop = None if best is None else best - total
            events = training_events(self.graph, schedule)
            self.left -= _run(events, allocator, large=True, stop=stop)
            total += allocator.lacked
            if best is not None and total > best:
                break
        return total


def _run(
    events: Iterable[Event], allocator: CachingAllocator, *, large: bool, stop: int | None = None
) -> int:
    """Replay the events of one pool until it lacks more than it may; return how many there were."""
    blocks: dict[int, Block | None] = {}
    count = 0
    for key, size in events:
        if size:
            if (size > SMALL) is not large:
                continue
            blocks[key] = allocator.allocate(size)
            if stop is not None and allocator.lacked > stop:
                break
        elif key in blocks:
            allocator.release(blocks.pop(key))
        count += 1
    return count
