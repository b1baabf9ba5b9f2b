"""``simulate`` against a second, naive accounting, and every rule that it enforces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.graphs import (
    Action,
    Graph,
    InvalidSchedule,
    Op,
    Phase,
    Schedule,
    Step,
    Value,
    breakdown,
    live_at,
    phase_peaks,
    plain_schedule,
    schedule_from_order,
    simulate,
    step_phases,
)
from planner.solvers.model.order_from_kept import order_from_kept
from tests.strategies import chain, graphs, transformer

TWO = Graph(
    (Op("f", "f", (0,), (1,), 1.0), Op("g", "g", (1,), (2,), 2.0, workspace_bytes=5)),
    (Value("x", 8), Value("y", 4), Value("z", 2)),
    frozenset({2}),
)
F, G = Step(Action.COMPUTE, 0), Step(Action.COMPUTE, 1)


def _free(value: int) -> Step:
    return Step(Action.FREE, value)


def _naive_bytes(graph: Graph, schedule: Schedule) -> list[int]:
    """Hold a list of copies; drop the older twin once the op that made the newer has run."""
    copies, held = sorted(graph.resident), []
    for step in schedule.steps:
        if step.action is Action.FREE:
            copies.remove(step.index)
            held.append(sum(graph.values[v].size_bytes for v in copies))
        else:
            op = graph.ops[step.index]
            copies += op.outputs
            held.append(sum(graph.values[v].size_bytes for v in copies) + op.workspace_bytes)
            copies = sorted(set(copies))
    return held


@given(graphs(), st.data())
@settings(max_examples=100, deadline=None)
def test_agrees_with_naive_accounting(graph: Graph, data: st.DataObject) -> None:
    kept = data.draw(st.frozensets(st.integers(0, max(0, len(graph.values) - 1))))
    schedule = schedule_from_order(graph, order_from_kept(graph, kept))
    trace = simulate(graph, schedule)
    held = _naive_bytes(graph, schedule)
    assert trace.live_bytes.tolist() == held
    assert (trace.peak_bytes, trace.peak_step) == (max(held), held.index(max(held)))
    assert trace.by_kind.sum(axis=1).tolist() == held
    assert trace.seconds == sum(graph.ops[i].seconds for i in schedule.order)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_frees_are_the_earliest(graph: Graph) -> None:
    schedule = plain_schedule(graph)
    assert schedule.is_plain
    for i, step in enumerate(schedule.steps):
        if step.action is Action.FREE:
            last = [s.index for s in schedule.steps[:i] if s.action is Action.COMPUTE][-1]
            assert step.index in (*graph.ops[last].inputs, *graph.ops[last].outputs)
    kept = live_at(graph, schedule, len(schedule.steps))
    assert {x.value.name for x in kept} == {
        graph.values[v].name for v in graph.outputs | graph.resident
    }


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((G,), "step 0 runs 'g' but its input 'y' is not live"),
        ((F, _free(1), G), "step 2 runs 'g' but its input 'y' is not live"),
        ((F, _free(2)), "step 1 frees 'z', which is not live"),
        ((F, _free(0)), "step 1 frees 'x', which is resident"),
        ((_free(9),), "step 0 frees value 9; there are 3"),
        ((F,), "op 'g' never runs"),
        ((F, G, _free(2)), "output 'z' is not live at the end"),
    ],
)
def test_refuses(steps: tuple[Step, ...], message: str) -> None:
    with pytest.raises(InvalidSchedule) as error:
        simulate(TWO, Schedule(steps))
    assert message in str(error.value)


def test_refuses_to_rerun_what_may_not() -> None:
    graph = Graph((Op("rng", "f", (), (0,), recomputable=False),), (Value("m", 1),))
    with pytest.raises(InvalidSchedule, match="runs 'rng' again, which is not recomputable"):
        simulate(graph, Schedule((F, F)))


def test_two_copies_for_one_step() -> None:
    trace = simulate(TWO, Schedule((F, F, G, _free(1))))
    assert trace.live_bytes.tolist() == [12, 16, 19, 10]
    assert (trace.seconds, trace.peak_bytes, trace.peak_step) == (4.0, 19, 2)


def test_an_empty_graph_holds_its_residents() -> None:
    trace = simulate(Graph((), (Value("w", 7),)), Schedule(()))
    assert (trace.peak_bytes, trace.seconds) == (7, 0.0)


def test_breakdown_adds_up_to_the_trace() -> None:
    graph = transformer(2)
    schedule = plain_schedule(graph)
    trace = simulate(graph, schedule)
    for by in ("kind", "module", "source"):
        parts = breakdown(graph, schedule, trace.peak_step, by)
        workspace = graph.ops[schedule.steps[trace.peak_step].index].workspace_bytes
        assert sum(parts.values()) + workspace == trace.peak_bytes
        assert list(parts.values()) == sorted(parts.values(), reverse=True)


def test_a_recomputation_belongs_to_the_phase_it_serves() -> None:
    graph = chain(3)
    schedule = schedule_from_order(graph, order_from_kept(graph, frozenset()))
    phases = step_phases(graph, schedule)
    rerun = [i for i, s in enumerate(schedule.steps) if s.action is Action.COMPUTE][3]
    assert schedule.steps[rerun].index == 0
    assert phases[rerun] is Phase.BACKWARD
    trace = simulate(graph, schedule)
    peaks = phase_peaks(graph, schedule, trace)
    assert max(trace.live_bytes[i] for i in peaks.values()) == trace.peak_bytes
