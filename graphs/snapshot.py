"""One step of a schedule looked at: what is held there, by what, and in which phase it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from planner.graphs.graph import Graph, Op, Phase, Value
from planner.graphs.schedule import Copy, Schedule, Step, Subject
from planner.graphs.simulate import Trace


@dataclass(frozen=True, slots=True)
class Live:
    """One value held at some step, and the op that made it (``None`` if resident)."""

    value: Value
    op: Op | None


def live_at(graph: Graph, schedule: Schedule, step: int) -> tuple[Live, ...]:
    """List what is held while a step runs, largest first.

    Args:
        graph, schedule: what runs, and in which order.
        step: a step of the schedule.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> from planner.graphs.schedule import plain_schedule
    >>> values = (Value("a", 3), Value("b", 4))
    >>> g = Graph((Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,))), values)
    >>> [x.value.name for x in live_at(g, plain_schedule(g), 1)]
    ['b', 'a']
    """
    live = set(graph.resident)
    for s in schedule.steps[: step + 1]:
        match s.action.subject:
            case Subject.OP:
                live.update(graph.ops[s.index].outputs)
            case Subject.VALUE:
                _move(live, s)
            case _:
                assert_never(s.action.subject)
    ranked = sorted(live, key=lambda v: (-graph.values[v].size_bytes, v))
    maker = graph.producer
    return tuple(
        Live(graph.values[v], None if (p := maker[v]) is None else graph.ops[p]) for v in ranked
    )


def _move(live: set[int], step: Step) -> None:
    match step.action.device:
        case Copy.TAKEN:
            live.add(step.index)
        case Copy.DROPPED:
            live.discard(step.index)
        case Copy.KEPT:
            pass
        case _:
            assert_never(step.action.device)


_GROUPINGS: Mapping[str, Callable[[Live], str]] = {
    "kind": lambda x: x.value.kind.value,
    "module": lambda x: x.op.module if x.op else x.value.kind.value,
    "source": lambda x: x.op.source if x.op else x.value.kind.value,
}


def breakdown(graph: Graph, schedule: Schedule, step: int, by: str = "kind") -> dict[str, int]:
    """Add up the bytes held at a step by "kind", "module" or "source", largest first.

    Args:
        graph, schedule: what runs, and in which order.
        step: a step of the schedule.
        by: "kind", "module" or "source".
    """
    totals: defaultdict[str, int] = defaultdict(int)
    for item in live_at(graph, schedule, step):
        totals[_GROUPINGS[by](item)] += item.value.size_bytes
    return dict(sorted(totals.items(), key=lambda kv: -kv[1]))


def phase_peaks(graph: Graph, schedule: Schedule, trace: Trace) -> dict[Phase, int]:
    """Return for each phase the step at which it holds most; a recomputation counts where it runs.

    A step belongs to the phase of the next op that runs for the first time.

    Args:
        graph, schedule: what runs, and in which order.
        trace: what ``simulate`` found of it.
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
        if step.action.subject is Subject.OP and step.index not in seen:
            seen.add(step.index)
            first[i] = True
    phases: list[Phase] = []
    current = graph.ops[-1].phase if graph.ops else Phase.FORWARD
    for i in range(len(schedule.steps) - 1, -1, -1):
        if first[i]:
            current = graph.ops[schedule.steps[i].index].phase
        phases.append(current)
    return phases[::-1]
