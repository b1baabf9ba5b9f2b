"""``simulate``, the only judge of what a schedule costs and peaks at.

Knows the rules of execution, and the clocks: the device's, and one for each direction of its link
to the host. What a step holds is ``graphs.memory``'s to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.graphs.graph import Graph, Kind, Op
from planner.graphs.memory import EXACT, KINDS, Holding, MemoryModel
from planner.graphs.schedule import Clock, Copy, Schedule, Step, Subject

_NO_LINKS: Mapping[Clock, float] = {}


class InvalidSchedule(ValueError):
    """A schedule breaks a rule of execution; the message names the step and the rule."""


@dataclass(frozen=True)
class Trace:
    """What ``simulate`` found. ``live_bytes[i]`` is what is held while step ``i`` runs.

    ``by_kind[i, k]`` splits ``live_bytes`` by ``kinds[k]``; workspace counts as activation.
    ``allocated_bytes[i]`` are the very bytes of values and workspaces; ``live_bytes`` are the same
    unless a memory model adds what an allocator has reserved beyond them.
    ``seconds`` is when the last clock stops, every execution of every op and every wait counted;
    ``start_seconds[i]`` is when step ``i`` begins, after what it waits for. ``host_peak_bytes`` is
    the most that the host holds for the device, ``busy_seconds`` how long each link copies.
    """

    seconds: float
    peak_bytes: int
    peak_step: int
    live_bytes: NDArray[np.int64]
    by_kind: NDArray[np.int64]
    kinds: tuple[Kind, ...]
    start_seconds: NDArray[np.float64]
    allocated_bytes: NDArray[np.int64]
    host_peak_bytes: int = 0
    busy_seconds: Mapping[Clock, float] = field(default_factory=dict)


def simulate(
    graph: Graph,
    schedule: Schedule,
    *,
    memory: MemoryModel = EXACT,
    link_bytes_per_second: Mapping[Clock, float] = _NO_LINKS,
) -> Trace:
    """Run a schedule on paper.

    Every op must run at least once and every graph output must be live at the end. An op begins
    when the device is free and what it reads has arrived. A transfer begins when its link is free
    and the device has done the steps before it; meanwhile the device goes on.

    Which bytes a step holds depends on the order of steps alone, never on how long a copy takes: a
    value that is copied out is held until it is freed, and the device waits there for the end of
    that copy; one that is fetched is held from the step that begins its copy. So a peak holds
    however fast the links are. The host holds a value from the beginning of the copy out until the
    device has waited for the copy back.

    Args:
        graph: what there is to run.
        schedule: the steps, of actions that ``graphs.schedule.ACTIONS`` has.
        memory: what the device needs for the bytes held; the very bytes by default.
        link_bytes_per_second: the rate of every link that the schedule copies over.

    Raises:
        InvalidSchedule: an input is not live, a value is freed that is not live, an op that is not
            recomputable runs twice, an op never runs, an output is gone at the end, a value is
            copied over a link without a rate, fetched that is not on the host, or is there twice.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> from planner.graphs.schedule import schedule_from_order
    >>> g = Graph((Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 2.0)),
    ...           (Value("a", 3), Value("b", 4)), frozenset({1}))
    >>> trace = simulate(g, schedule_from_order(g, [0, 1]))
    >>> trace.peak_bytes, trace.seconds, trace.live_bytes.tolist()
    (7, 3.0, [3, 7, 4])
    """
    run = _Run(graph, link_bytes_per_second)
    op = Subject.OP
    for i, step in enumerate(schedule.steps):
        if step.action.subject is op:
            run.compute(i, step.index)
        else:
            run.move(i, step)
    _check_end(graph, run.holding.live, run.runs)
    changes, count = run.holding.changes, len(schedule.steps)
    by_kind = memory.held(changes, count)
    held = by_kind.sum(axis=1) if count else np.array([graph.resident_bytes])
    allocated = held if memory is EXACT or not count else EXACT.held(changes, count).sum(axis=1)
    peak_step = int(np.argmax(held))
    return Trace(
        seconds=max(run.device_seconds, *run.link_seconds.values(), 0.0),
        peak_bytes=int(held[peak_step]),
        peak_step=peak_step,
        live_bytes=held,
        by_kind=by_kind,
        kinds=KINDS,
        start_seconds=np.array(run.starts, dtype=np.float64),
        allocated_bytes=allocated,
        host_peak_bytes=run.host_peak_bytes,
        busy_seconds=dict(run.busy),
    )


class _Run:
    """The state of a schedule half way: clocks, what is live, what the host has."""

    def __init__(self, graph: Graph, rates: Mapping[Clock, float]) -> None:
        self.graph, self.rates = graph, rates
        self.holding = Holding(graph)
        self.runs = [0] * len(graph.ops)
        self.device_seconds = 0.0
        self.link_seconds: defaultdict[Clock, float] = defaultdict(float)
        self.busy: defaultdict[Clock, float] = defaultdict(float)
        self.starts: list[float] = []
        self.arriving: dict[int, float] = {}  # value -> when its copy on the device is whole
        self.leaving: dict[int, float] = {}  # value -> when its copy on the device is not read
        self.host: dict[int, float] = {}  # value -> when its copy on the host is whole
        self.moved_back: set[int] = set()  # what leaves the host once it has arrived
        self.host_bytes = self.host_peak_bytes = 0

    def compute(self, i: int, index: int) -> None:
        """Run an op on the device's clock."""
        op = self.graph.ops[index]
        _check_compute(self.graph, op, self.holding.live, i, self.runs[index])
        if self.arriving or self.leaving:
            self._await_copies(op.inputs, op.outputs)
        self.starts.append(self.device_seconds)
        self.runs[index] += 1
        self.holding.compute(i, op)
        self.device_seconds += op.seconds

    def move(self, i: int, step: Step) -> None:
        """Take, keep or drop the copies of a value."""
        _check_value(self.graph, i, step)
        action, value = step.action, step.index
        if action.clock is Clock.NONE:
            if action.device is Copy.DROPPED and (self.arriving or self.leaving):
                self._await_copies((), (value,))
            start = end = self.device_seconds
        else:
            start, end = self._transfer(i, step)
        self.starts.append(start)
        if action.host is not Copy.KEPT:
            self._on_host(i, step, end)
        if action.device is not Copy.KEPT:
            self._on_device(i, step, end)

    def _await_copies(self, read: Iterable[int], replaced: Iterable[int]) -> None:
        """Let the device wait until what it reads has arrived, and what it drops has left, too."""
        for v in (*read, *replaced):
            self.device_seconds = max(self.device_seconds, self.arriving.pop(v, 0.0))
            if v in self.moved_back:
                self.moved_back.discard(v)
                self._forget_on_host(v)
        for v in replaced:
            self.device_seconds = max(self.device_seconds, self.leaving.pop(v, 0.0))

    def _on_host(self, i: int, step: Step, end: float) -> None:
        value = step.index
        if step.action.host is Copy.TAKEN:
            _require(value in self.holding.live, self.graph, i, step, "not live")
            _require(value not in self.host, self.graph, i, step, "already on the host")
            self.host[value] = end
            self.host_bytes += self.graph.values[value].size_bytes
            self.host_peak_bytes = max(self.host_peak_bytes, self.host_bytes)
            if step.action.device is Copy.KEPT and step.action.clock is not Clock.NONE:
                self.leaving[value] = end
        else:
            there = value in self.host and value not in self.moved_back
            _require(there, self.graph, i, step, "not on the host")
            if step.action.clock is Clock.NONE:
                self._forget_on_host(value)
            else:
                self.moved_back.add(value)

    def _forget_on_host(self, value: int) -> None:
        del self.host[value]
        self.host_bytes -= self.graph.values[value].size_bytes

    def _on_device(self, i: int, step: Step, end: float) -> None:
        value, live = step.index, self.holding.live
        if step.action.device is Copy.DROPPED:
            _require(value in live, self.graph, i, step, "not live")
            if step.action.clock is not Clock.NONE:
                self.device_seconds = end
            self.holding.give_back(i, value)
        else:
            _require(value not in live, self.graph, i, step, "already live")
            _require(value in self.host, self.graph, i, step, "not on the host")
            self.holding.take(i, value)
            self.arriving[value] = end

    def _transfer(self, i: int, step: Step) -> tuple[float, float]:
        """Return when a copy over a link begins and ends; it waits for the link and the value."""
        clock, value = step.action.clock, self.graph.values[step.index]
        if clock not in self.rates:
            raise InvalidSchedule(
                f"step {i} copies {value.name!r} {clock.value}, but the rate of that link is not "
                "known: pass link_bytes_per_second="
            )
        whole = max(self.arriving.get(step.index, 0.0), self.host.get(step.index, 0.0))
        start = max(self.link_seconds[clock], self.device_seconds, whole)
        seconds = value.size_bytes / self.rates[clock]
        self.link_seconds[clock] = start + seconds
        self.busy[clock] += seconds
        return start, start + seconds


def _require(ok: bool, graph: Graph, i: int, step: Step, what: str) -> None:  # noqa: FBT001
    if not ok:
        name = graph.values[step.index].name
        raise InvalidSchedule(f"step {i} {step.action.name}s {name!r}, which is {what}")


def _check_value(graph: Graph, i: int, step: Step) -> None:
    said = f"step {i} {step.action.name}s"
    if not 0 <= step.index < len(graph.values):
        raise InvalidSchedule(f"{said} value {step.index}; there are {len(graph.values)}")
    moved = step.action.device is not Copy.KEPT or step.action.host is not Copy.KEPT
    if step.index in graph.resident and moved:
        raise InvalidSchedule(f"{said} {graph.values[step.index].name!r}, which is resident")


def _check_compute(graph: Graph, op: Op, live: set[int], i: int, runs: int) -> None:
    if runs and not op.recomputable:
        raise InvalidSchedule(f"step {i} runs {op.name!r} again, which is not recomputable")
    if missing := [v for v in op.inputs if v not in live]:
        name = graph.values[missing[0]].name
        raise InvalidSchedule(f"step {i} runs {op.name!r} but its input {name!r} is not live")


def _check_end(graph: Graph, live: set[int], runs: list[int]) -> None:
    if 0 in runs:
        raise InvalidSchedule(f"op {graph.ops[runs.index(0)].name!r} never runs")
    if gone := graph.outputs - live:
        name = graph.values[min(gone)].name
        raise InvalidSchedule(f"output {name!r} is not live at the end")
