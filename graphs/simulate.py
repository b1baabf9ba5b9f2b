"""``simulate``, the only judge of what a schedule costs and peaks at.

Knows the rules of execution. Knows nothing of who made a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.graphs.graph import Graph, Kind, Op
from planner.graphs.schedule import Action, Schedule


class InvalidSchedule(ValueError):
    """A schedule breaks a rule of execution; the message names the step and the rule."""


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


def simulate(graph: Graph, schedule: Schedule) -> Trace:
    """Run a schedule on paper.

    A COMPUTE holds the op's inputs, its outputs and its workspace at once. Computing a value whose
    copy is still live holds both copies for that step and one after it. Every op must run at least
    once and every graph output must be live at the end.

    Raises:
        InvalidSchedule: an input is not live, a value is freed that is not live, an op that is not
            recomputable runs twice, an op never runs, or an output is gone at the end.

    >>> from planner.graphs.graph import Graph, Op, Value
    >>> from planner.graphs.schedule import schedule_from_order
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
