"""What a device needs so that a schedule runs through its allocator, step after step.

Tensors' bytes are not what an accelerator has to have: its allocator rounds, keeps segments and
leaves holes. Here several steps of a schedule are replayed through it: the first makes the state of
the optimizer, the others find what the first has left. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.graphs.graph import Graph, Kind, Op, Phase
from planner.graphs.hardware.allocators import Block, CachingAllocator, OutOfMemory
from planner.graphs.schedule import Copy, Schedule, Subject

STEPS = 3
"""How many steps are replayed: the second runs with state, the third shows that it lasts."""

Event = tuple[int, int]
"""The number of a block and the bytes asked for it; 0 bytes give it back."""

_ACCURACY = 2e-3
_CLOSE = 0.02


@dataclass(frozen=True, slots=True)
class Needs:
    """What a schedule takes of a device, in bytes, what the device keeps for itself included.

    ``allocated_bytes`` is the most in use at once (``torch.cuda.max_memory_allocated``, and the
    reserve), ``reserved_bytes`` the most that the allocator has of a driver with plenty, and
    ``needed_bytes`` the least memory in which the steps run.
    """

    allocated_bytes: int
    reserved_bytes: int
    needed_bytes: int


def needs(graph: Graph, schedule: Schedule, *, expandable: bool = False) -> Needs:
    """Find what a schedule takes of a device with PyTorch's caching allocator.

    Args:
        graph, schedule: what runs.
        expandable: with expandable segments.

    >>> from planner.graphs.graph import Value
    >>> from planner.graphs.schedule import schedule_from_order
    >>> g = Graph((Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 2.0)),
    ...           (Value("a", 3 * 2**20), Value("b", 4 * 2**20)), frozenset({1}))
    >>> found = needs(g, schedule_from_order(g, [0, 1]))
    >>> found.allocated_bytes >> 20, found.reserved_bytes >> 20, found.needed_bytes >> 20
    (7, 20, 20)
    """
    events = list(training_events(graph, schedule))
    kept = _kept(graph)
    plenty = CachingAllocator(expandable=expandable)
    replay(events, plenty)
    low, high = plenty.peak_allocated, plenty.peak_reserved
    if replay(events, CachingAllocator(low, expandable=expandable)):
        high = low
    while high - low > high * _ACCURACY:
        middle = (low + high) // 2
        if replay(events, CachingAllocator(middle, expandable=expandable)):
            high = middle
        else:
            low = middle
    return Needs(plenty.peak_allocated + kept, plenty.peak_reserved + kept, high + kept)


def runs_within(
    graph: Graph, schedule: Schedule, budget_bytes: int, *, expandable: bool = False
) -> bool:
    """Tell whether a schedule runs on a device that has so many bytes.

    Args:
        graph, schedule: what runs.
        budget_bytes: what the device has, with what it keeps for itself.
        expandable: with expandable segments.
    """
    room = budget_bytes - _kept(graph)
    allocator = CachingAllocator(max(room, 0), expandable=expandable)
    return replay(training_events(graph, schedule), allocator)


def replay(events: Sequence[Event] | Iterator[Event], allocator: CachingAllocator) -> bool:
    """Hand events to an allocator; tell whether it could do them all."""
    blocks: dict[int, Block | None] = {}
    try:
        for key, size in events:
            if size:
                blocks[key] = allocator.allocate(size)
            else:
                allocator.release(blocks.pop(key))
    except OutOfMemory:
        return False
    return True


def _kept(graph: Graph) -> int:
    return sum(v.size_bytes for v in graph.values if v.kind is Kind.RESERVE)


def training_events(graph: Graph, schedule: Schedule, steps: int = STEPS) -> Iterator[Event]:
    """Yield what is allocated and given back in several training steps, in order.

    Parameters and buffers come first and stay. Every step brings a batch before the last one goes,
    runs the schedule, and drops what is live at its end, gradients included. State of the optimizer
    is made in its first step, a tensor for each parameter that it reads a gradient of.

    Args:
        graph, schedule: what runs.
        steps: how many.
    """
    return _Events(graph, schedule).of(steps)


class _Events:
    def __init__(self, graph: Graph, schedule: Schedule) -> None:
        self.graph, self.schedule = graph, schedule
        self.size = [v.size_bytes for v in graph.values]
        self.count = 0
        self.live: dict[int, int] = {}

    def of(self, steps: int) -> Iterator[Event]:
        resident = sorted(self.graph.resident)
        kind = [v.kind for v in self.graph.values]
        made = [v for v in resident if kind[v] in {Kind.PARAMETER, Kind.BUFFER, Kind.GRADIENT}]
        batch = [v for v in resident if kind[v] is Kind.INPUT and self.size[v]]
        for v in made:
            yield from self._block(self.size[v])
        before: list[int] = []
        for step in range(steps):
            now: list[int] = []
            for v in batch:
                yield from self._block(self.size[v])
                now.append(self.count)
            for key in before:
                yield key, 0
            before = now
            yield from self._step(first=step == 0)

    def _block(self, size: int) -> Iterator[Event]:
        self.count += 1
        if size:
            yield self.count, size

    def _step(self, *, first: bool) -> Iterator[Event]:
        for step in self.schedule.steps:
            if step.action.subject is Subject.OP:
                op = self.graph.ops[step.index]
                if op.phase is Phase.OPTIMIZER:
                    yield from self._optimizer(op, first=first)
                yield from self._compute(op)
            elif step.action.device is Copy.DROPPED:
                yield from self._drop(step.index)
            elif step.action.device is Copy.TAKEN:
                yield from self._make(step.index)
        for v in list(self.live):
            yield from self._drop(v)

    def _compute(self, op: Op) -> Iterator[Event]:
        copies = [self.live.pop(v) for v in op.outputs if v in self.live]
        for v in op.outputs:
            yield from self._make(v)
        if op.workspace_bytes and op.phase is not Phase.OPTIMIZER:
            yield from self._block(op.workspace_bytes)
            yield self.count, 0
        for key in copies:
            yield key, 0

    def _make(self, v: int) -> Iterator[Event]:
        if self.size[v]:
            yield from self._block(self.size[v])
            self.live[v] = self.count

    def _drop(self, v: int) -> Iterator[Event]:
        if v in self.live:
            yield self.live.pop(v), 0

    def _optimizer(self, op: Op, *, first: bool) -> Iterator[Event]:
        parts = [self.size[v] for v in op.inputs]
        if first:
            states = sum(v.size_bytes for v in self.graph.values if v.kind is Kind.OPTIMIZER)
            for size in _pieces(states, parts):
                yield from self._block(size)
        begun = self.count
        for size in _pieces(op.workspace_bytes, parts):
            yield from self._block(size)
        for key in range(begun + 1, self.count + 1):
            yield key, 0


def _pieces(total: int, parts: Sequence[int]) -> Iterator[int]:
    """Split what is as large as all parameters a few times over into tensors of their sizes."""
    whole = sum(parts)
    times = round(total / whole) if whole else 0
    if not times or abs(total - times * whole) > _CLOSE * total:
        if total:
            yield total
        return
    for size in parts:
        for _ in range(times):
            if size:
                yield size
    if total > times * whole:
        yield total - times * whole
