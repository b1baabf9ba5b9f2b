"""What a device needs so that a schedule runs through its allocator, step after step.

Tensors' bytes are not what an accelerator has to have: its allocator rounds, keeps segments and
leaves holes. Here several steps of a schedule are replayed through it: the first makes the state of
the optimizer, the others find what the first has left. When the allocator gives back what is free
depends on what the device has, so more memory may lie in more pieces: a schedule is said to run in
so much memory if it does in that and in more. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.graphs.graph import Graph, Kind, Op, Phase
from planner.graphs.hardware.allocators import Block, CachingAllocator, OutOfMemory
from planner.graphs.schedule import Copy, Schedule, Subject

Order = tuple[float, ...]
"""The sizes of the batches of several steps, as shares of the largest."""

ALIKE: Order = (1.0, 1.0, 1.0)
"""What is replayed: the second step runs with state, the third shows that it lasts."""

CHANGING: tuple[Order, ...] = (
    (0.61, 1.0, 0.38, 1.0),
    (0.25, 0.5, 0.75, 1.0),
)
"""Orders of sizes that fragment: smaller steps leave blocks that larger ones do not fit into."""

Event = tuple[int, int]
"""The number of a block and the bytes asked for it; 0 bytes give it back."""

_ACCURACY = 2e-3
_CLOSE = 0.02
_BEYOND = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Memory beyond what is in use at once, as fractions of that, in which a schedule is tried."""


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


def needs(
    graph: Graph,
    schedule: Schedule,
    *,
    expandable: bool = False,
    orders: Sequence[Order] = (ALIKE,),
) -> Needs:
    """Find what a schedule takes of a device with PyTorch's caching allocator.

    Args:
        graph, schedule: what runs.
        expandable: with expandable segments.
        orders: of the sizes of its steps; the worst counts.

    >>> from planner.graphs.graph import Value
    >>> from planner.graphs.schedule import schedule_from_order
    >>> g = Graph((Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 2.0)),
    ...           (Value("a", 3 * 2**20), Value("b", 4 * 2**20)), frozenset({1}))
    >>> found = needs(g, schedule_from_order(g, [0, 1]))
    >>> found.allocated_bytes >> 20, found.reserved_bytes >> 20, found.needed_bytes >> 20
    (7, 20, 20)
    """
    return max(
        (_needs(graph, schedule, order, expandable=expandable) for order in orders),
        key=lambda found: found.needed_bytes,
    )


def _needs(graph: Graph, schedule: Schedule, order: Order, *, expandable: bool) -> Needs:
    found = _Trials(graph, schedule, order, expandable=expandable)
    low = high = found.plenty.peak_reserved
    for low in reversed(found.sizes):
        if not found.runs(low):
            break
        high = low
    while high - low > high * _ACCURACY:
        middle = (low + high) // 2
        if found.runs(middle):
            high = middle
        else:
            low = middle
    kept, plenty = kept_bytes(graph), found.plenty
    return Needs(plenty.peak_allocated + kept, plenty.peak_reserved + kept, high + kept)


def runs_within(
    graph: Graph, schedule: Schedule, budget_bytes: int, *, expandable: bool = False
) -> bool:
    """Tell whether a schedule runs on a device that has so many bytes, or more.

    Args:
        graph, schedule: what runs.
        budget_bytes: what the device has, with what it keeps for itself.
        expandable: with expandable segments.
    """
    return first_failure(graph, schedule, budget_bytes, expandable=expandable) is None


def first_failure(
    graph: Graph, schedule: Schedule, budget_bytes: int, *, expandable: bool = False
) -> int | None:
    """Return the first of these and some larger numbers of bytes in which a schedule does not run.

    Args:
        graph, schedule, budget_bytes, expandable: as for ``runs_within``.
    """
    found, kept = _Trials(graph, schedule, ALIKE, expandable=expandable), kept_bytes(graph)
    room = budget_bytes - kept
    larger = [size for size in found.sizes if size > room]
    return next((size + kept for size in (room, *larger) if not found.runs(size)), None)


class _Trials:
    """The events of a schedule, and in how much memory, without what the device keeps, they run."""

    def __init__(self, graph: Graph, schedule: Schedule, order: Order, *, expandable: bool) -> None:
        self.events, self.expandable = training_events(graph, schedule, order), expandable
        self.plenty = CachingAllocator(expandable=expandable)
        replay(self.events, self.plenty)
        least, most = self.plenty.peak_allocated, self.plenty.peak_reserved
        sizes = (int(least * (1 + beyond)) for beyond in _BEYOND)
        self.sizes = [size for size in sizes if size < most]
        """Where it is not clear; from the most that is ever reserved on, they run."""

    def runs(self, size: int) -> bool:
        if size >= self.plenty.peak_reserved:
            return True
        if size < self.plenty.peak_allocated:
            return False
        return replay(self.events, CachingAllocator(size, expandable=self.expandable))


def replay(events: Iterable[Event], allocator: CachingAllocator) -> bool:
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


def kept_bytes(graph: Graph) -> int:
    """Return what a device keeps for itself, which no allocator has."""
    return sum(v.size_bytes for v in graph.values if v.kind is Kind.RESERVE)


def training_events(graph: Graph, schedule: Schedule, order: Order = ALIKE) -> list[Event]:
    """Return what is allocated and given back in several training steps, in order.

    Parameters and buffers come first and stay. Every step brings a batch before the last one goes,
    runs the schedule, and drops what is live at its end, gradients included. State of the optimizer
    is made in its first step, a tensor for each parameter that it reads a gradient of. What is made
    of a smaller batch is smaller by as much, all but gradients of parameters.

    Args:
        graph, schedule: what runs.
        order: the size of each step's batch, as a share of the largest.
    """
    return _Events(graph, schedule).of(order)


class _Events:
    def __init__(self, graph: Graph, schedule: Schedule) -> None:
        self.graph, self.schedule = graph, schedule
        self.size = [v.size_bytes for v in graph.values]
        self.share = 1.0
        self.count = 0
        self.live: dict[int, int] = {}
        self.events: list[Event] = []

    def of(self, order: Order) -> list[Event]:
        resident = sorted(self.graph.resident)
        kind = [v.kind for v in self.graph.values]
        made = [v for v in resident if kind[v] in {Kind.PARAMETER, Kind.BUFFER, Kind.GRADIENT}]
        batch = [v for v in resident if kind[v] is Kind.INPUT and self.size[v]]
        for v in made:
            self._block(self.size[v])
        before: list[int] = []
        for step, self.share in enumerate(order):
            self._resize()
            now = [self._block(self.size[v]) for v in batch]
            self._give_back(before)
            before = now
            self._step(first=step == 0)
        return self.events

    def _resize(self) -> None:
        values = self.graph.values
        self.size = [v.size_bytes for v in values]
        if self.share < 1:
            fixed = {v for v in self.graph.resident if values[v].kind is not Kind.INPUT}
            fixed |= {v for op in self.graph.ops if _ends(op) for v in op.inputs}
            for v in range(len(values)):
                if v not in fixed:
                    self.size[v] = _share(self.size[v], self.share)

    def _block(self, size: int) -> int:
        self.count += 1
        if size:
            self.events.append((self.count, size))
        return self.count

    def _give_back(self, blocks: Iterable[int]) -> None:
        self.events += [(block, 0) for block in blocks]

    def _step(self, *, first: bool) -> None:
        for step in self.schedule.steps:
            if step.action.subject is Subject.OP:
                op = self.graph.ops[step.index]
                if op.phase is Phase.OPTIMIZER:
                    self._optimizer(op, first=first)
                self._compute(op)
            elif step.action.device is Copy.DROPPED:
                if step.index in self.live:
                    self.events.append((self.live.pop(step.index), 0))
            elif step.action.device is Copy.TAKEN:
                self._make(step.index)
        self._give_back(self.live.values())
        self.live.clear()

    def _compute(self, op: Op) -> None:
        copies = [self.live.pop(v) for v in op.outputs if v in self.live]
        for v in op.outputs:
            self._make(v)
        if op.workspace_bytes and op.phase is not Phase.OPTIMIZER:
            workspace = _share(op.workspace_bytes, self.share)
            self.events.append((self._block(workspace), 0))
        self._give_back(copies)

    def _make(self, v: int) -> None:
        if self.size[v]:
            self.live[v] = self._block(self.size[v])

    def _optimizer(self, op: Op, *, first: bool) -> None:
        parts = [self.size[v] for v in op.inputs]
        if first:
            states = sum(v.size_bytes for v in self.graph.values if v.kind is Kind.OPTIMIZER)
            for size in _pieces(states, parts):
                self._block(size)
        self._give_back([self._block(size) for size in _pieces(op.workspace_bytes, parts)])


def _ends(op: Op) -> bool:
    """Tell whether an op takes gradients of parameters out of a step."""
    return op.phase is Phase.OPTIMIZER or (op.phase is Phase.BACKWARD and not op.outputs)


def _share(size: int, share: float) -> int:
    return size if share >= 1 else max(1, int(size * share)) if size else 0


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
