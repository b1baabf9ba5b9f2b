"""Schedules and ``simulate``, the only judge of what a schedule costs and peaks at.

Knows the rules of execution. Knows nothing of where graphs come from or who made the schedule.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.graphs.graph import Graph, Kind, Op, Phase, Value


class InvalidSchedule(ValueError):
    """A schedule breaks a rule of execution; the message names the step and the rule."""


class Action(enum.Enum):
    """What a step does."""

    COMPUTE = "compute"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Step:
    """COMPUTE the op with this index, or FREE the value with this index."""

    action: Action
    index: int


@dataclass(frozen=True)
class Schedule:
    """Steps in the order they run.

    >>> Schedule((Step(Action.COMPUTE, 0), Step(Action.FREE, 1))).order
    (0,)
    """

    steps: tuple[Step, ...]

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The ops computed, in order, repetitions included."""
        return tuple(s.index for s in self.steps if s.action is Action.COMPUTE)

    @property
    def is_store_all(self) -> bool:
        """True if no op runs twice."""
        return len(set(self.order)) == len(self.order)

    @property
    def is_reordered(self) -> bool:
        """True if ops first run in another order than the graph's.

        >>> Schedule((Step(Action.COMPUTE, 1), Step(Action.COMPUTE, 0))).is_reordered
        True
        """
        first = list(dict.fromkeys(self.order))
        return first != sorted(first)


@dataclass(frozen=True)
class Trace:
    """What ``simulate`` found. ``live_bytes[i]`` is what is held while step ``i`` runs.

    ``by_kind[i, k]`` splits ``live_bytes`` by ``kinds[k]``; workspace counts as activation.
    ``seconds`` counts every execution of every op.
    """

    seconds: float
    peak_bytes: int
    peak_step: int
    live_bytes: NDArray[np.int64]
    by_kind: NDArray[np.int64]
    kinds: tuple[Kind, ...]


def schedule_from_order(graph: Graph, order: Sequence[int]) -> Schedule:
    """Add to a sequence of ops the earliest possible frees: each copy dies after its last use.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> values = (Value("a", 1), Value("b", 1))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> [(s.action.value, s.index) for s in schedule_from_order(g, [0, 1]).steps]
    [('compute', 0), ('compute', 1), ('free', 0), ('free', 1)]
    """
    needed = set(graph.outputs)  # going backwards: values some later step still reads
    reverse: list[Step] = []
    for index in reversed(order):
        op = graph.ops[index]
        dying = [v for v in op.outputs if v not in needed]
        needed.difference_update(op.outputs)
        dying += [v for v in op.inputs if v not in needed and v not in graph.resident]
        needed.update(op.inputs)
        reverse += [Step(Action.FREE, v) for v in sorted(dying, reverse=True)]
        reverse.append(Step(Action.COMPUTE, index))
    return Schedule(tuple(reversed(reverse)))


def simulate(graph: Graph, schedule: Schedule) -> Trace:
    """Run a schedule on paper.

    A COMPUTE holds the op's inputs, its outputs and its workspace at once. Computing a value whose
    copy is still live holds both copies for that step and one after it. Every op must run at least
    once and every graph output must be live at the end.

    Raises:
        InvalidSchedule: an input is not live, a value is freed that is not live, an op that is not
            recomputable runs twice, an op never runs, or an output is gone at the end.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> g = Graph((Op("a", "f", (), (0,), 1.0), Op("b", "f", (0,), (1,), 2.0)),
    ...           (Value("a", 3), Value("b", 4)), frozenset({1}))
    >>> trace = simulate(g, schedule_from_order(g, [0, 1]))
    >>> trace.peak_bytes, trace.seconds, trace.live_bytes.tolist()
    (7, 3.0, [3, 7, 4])
    """
    kinds = tuple(Kind)
    column = {kind: k for k, kind in enumerate(kinds)}
    sizes = [v.size_bytes for v in graph.values]
    columns = [column[v.kind] for v in graph.values]
    live, runs, seconds = set(graph.resident), [0] * len(graph.ops), 0.0
    delta = np.zeros((len(schedule.steps) + 1, len(kinds)), dtype=np.int64)
    extra = np.zeros_like(delta)  # held during the step only
    for v in graph.resident:
        delta[0, columns[v]] += sizes[v]
    for i, step in enumerate(schedule.steps):
        if step.action is Action.FREE:
            _check_free(graph, live, i, step.index)
            live.discard(step.index)
            delta[i, columns[step.index]] -= sizes[step.index]
            continue
        op = graph.ops[step.index]
        _check_compute(graph, op, live, i, runs[step.index])
        runs[step.index] += 1
        seconds += op.seconds
        extra[i, column[Kind.ACTIVATION]] += op.workspace_bytes
        for v in op.outputs:
            (extra if v in live else delta)[i, columns[v]] += sizes[v]
            live.add(v)
    _check_end(graph, live, runs)
    by_kind = (np.cumsum(delta, axis=0) + extra)[: len(schedule.steps)]
    held = by_kind.sum(axis=1) if len(by_kind) else np.array([graph.resident_bytes])
    peak_step = int(np.argmax(held))
    return Trace(seconds, int(held[peak_step]), peak_step, held, by_kind, kinds)


def _check_free(graph: Graph, live: set[int], i: int, value: int) -> None:
    if not 0 <= value < len(graph.values):
        raise InvalidSchedule(f"step {i} frees value {value}; there are {len(graph.values)}")
    if value in graph.resident:
        raise InvalidSchedule(f"step {i} frees {graph.values[value].name!r}, which is resident")
    if value not in live:
        raise InvalidSchedule(f"step {i} frees {graph.values[value].name!r}, which is not live")


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


def store_all(graph: Graph) -> Schedule:
    """Return the schedule that runs every op once, in order, freeing at last use."""
    return schedule_from_order(graph, range(len(graph.ops)))


@dataclass(frozen=True, slots=True)
class Live:
    """One value held at some step, and the op that made it (``None`` if resident)."""

    value: Value
    op: Op | None


def live_at(graph: Graph, schedule: Schedule, step: int) -> tuple[Live, ...]:
    """List what is held while a step runs, largest first.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> values = (Value("a", 3), Value("b", 4))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> [x.value.name for x in live_at(g, store_all(g), 1)]
    ['b', 'a']
    """
    live = set(graph.resident)
    for s in schedule.steps[: step + 1]:
        if s.action is Action.COMPUTE:
            live.update(graph.ops[s.index].outputs)
        else:
            live.discard(s.index)
    ranked = sorted(live, key=lambda v: (-graph.values[v].size_bytes, v))
    maker = graph.producer
    return tuple(
        Live(graph.values[v], None if (p := maker[v]) is None else graph.ops[p]) for v in ranked
    )


_GROUPINGS: Mapping[str, Callable[[Live], str]] = {
    "kind": lambda x: x.value.kind.value,
    "module": lambda x: x.op.module if x.op else x.value.kind.value,
    "source": lambda x: x.op.source if x.op else x.value.kind.value,
}


def breakdown(graph: Graph, schedule: Schedule, step: int, by: str = "kind") -> dict[str, int]:
    """Add up the bytes held at a step by "kind", "module" or "source", largest first."""
    totals: defaultdict[str, int] = defaultdict(int)
    for item in live_at(graph, schedule, step):
        totals[_GROUPINGS[by](item)] += item.value.size_bytes
    return dict(sorted(totals.items(), key=lambda kv: -kv[1]))


def phase_peaks(graph: Graph, schedule: Schedule, trace: Trace) -> dict[Phase, int]:
    """Return for each phase the step at which it holds most; a recomputation counts where it runs.

    A step belongs to the phase of the next op that runs for the first time.
    """
    peaks: dict[Phase, int] = {}
    for i, phase in enumerate(step_phases(graph, schedule)):
        if phase not in peaks or trace.live_bytes[i] > trace.live_bytes[peaks[phase]]:
            peaks[phase] = i
    return peaks


def step_phases(graph: Graph, schedule: Schedule) -> list[Phase]:
    """Return the phase of every step: that of the next op to run for the first time."""
    seen = set[int]()
    first = [False] * len(schedule.steps)
    for i, step in enumerate(schedule.steps):
        if step.action is Action.COMPUTE and step.index not in seen:
            seen.add(step.index)
            first[i] = True
    phases: list[Phase] = []
    current = graph.ops[-1].phase if graph.ops else Phase.FORWARD
    for i in range(len(schedule.steps) - 1, -1, -1):
        if first[i]:
            current = graph.ops[schedule.steps[i].index].phase
        phases.append(current)
    return phases[::-1]
