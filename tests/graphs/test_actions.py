"""Actions are rows: one that is entered here goes through simulate, snapshots and schedules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace

import pytest

from planner.graphs import (
    ACTIONS,
    Action,
    Clock,
    Copy,
    Graph,
    InvalidSchedule,
    Op,
    Schedule,
    Step,
    Subject,
    Value,
    live_at,
    plain_schedule,
    register_action,
    simulate,
    step_phases,
)

RATES = {Clock.TO_HOST: 2.0, Clock.FROM_HOST: 1.0}  # bytes a second


@pytest.fixture
def evict() -> Iterator[Action]:
    """An action that moves a value out at once: the device waits for the whole copy."""
    made = Action("evict", Subject.VALUE, Copy.DROPPED, Copy.TAKEN, Clock.TO_HOST)
    yield register_action(made)
    del ACTIONS["evict"]


@pytest.fixture
def graph() -> Graph:
    """A chain of three, whose last op reads what the first made."""
    ops = (
        Op("a", "f", (), (0,), 1.0),
        Op("b", "f", (0,), (1,), 1.0),
        Op("c", "f", (1,), (2,), 5.0, workspace_bytes=3),
        Op("d", "f", (0, 2), (3,), 1.0),
    )
    return Graph(ops, tuple(Value(n, size) for n, size in zip("abcd", (4, 2, 2, 1), strict=True)))


def _steps(text: str) -> Schedule:
    parts = (part.split() for part in text.split(", "))
    return Schedule(tuple(Step(ACTIONS[name], int(i)) for name, i in parts))


AWAY = "compute 0, compute 1, offload 0, {}compute 2, {}fetch 0, compute 3"


def test_an_action_is_its_name() -> None:
    assert pickle.loads(pickle.dumps(Action.FREE)) is Action.FREE
    assert copy.deepcopy(Step(Action.COMPUTE, 1)).action is Action.COMPUTE


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_action(Action("offload", Subject.VALUE))


def test_a_copy_out_overlaps_until_its_end_is_awaited(graph: Graph) -> None:
    trace = simulate(graph, _steps(AWAY.format("", "free 0, ")), link_bytes_per_second=RATES)
    # a copy of 2 s runs while c does; a is held meanwhile; it is back 4 s after c has ended
    assert trace.live_bytes.tolist() == [4, 6, 6, 11, 4, 8, 9]
    assert trace.start_seconds.tolist() == [0, 1, 2, 2, 7, 7, 11]
    assert trace.seconds == 12.0
    assert trace.host_peak_bytes == 4
    assert trace.busy_seconds == {Clock.TO_HOST: 2.0, Clock.FROM_HOST: 4.0}


def test_what_is_freed_before_its_copy_has_ended_makes_the_device_wait(graph: Graph) -> None:
    trace = simulate(graph, _steps(AWAY.format("free 0, ", "")), link_bytes_per_second=RATES)
    assert trace.live_bytes.tolist() == [4, 6, 6, 2, 7, 8, 9]
    assert trace.start_seconds.tolist() == [0, 1, 2, 4, 4, 9, 13]
    assert trace.seconds == 14.0


@pytest.mark.parametrize("speed", [0.01, 1.0, 1e6])
def test_bytes_do_not_depend_on_how_fast_the_links_are(graph: Graph, speed: float) -> None:
    rates = {clock: speed * rate for clock, rate in RATES.items()}
    for schedule in (AWAY.format("free 0, ", ""), AWAY.format("", "free 0, ")):
        found = simulate(graph, _steps(schedule), link_bytes_per_second=rates)
        usual = simulate(graph, _steps(schedule), link_bytes_per_second=RATES)
        assert found.live_bytes.tolist() == usual.live_bytes.tolist()
        assert found.host_peak_bytes == usual.host_peak_bytes
        assert found.seconds >= graph.seconds


def test_a_fetch_that_begins_early_hides(graph: Graph) -> None:
    ops = (*graph.ops[:1], replace(graph.ops[1], inputs=()), *graph.ops[2:])
    hidden = "compute 0, offload 0, free 0, compute 1, fetch 0, compute 2, compute 3"
    trace = simulate(
        Graph(ops, graph.values, name="hidden"), _steps(hidden), link_bytes_per_second=RATES
    )
    # out until 3, b until 4, back until 8 while c runs until 9
    assert trace.start_seconds.tolist() == [0, 1, 3, 3, 4, 4, 9]
    assert trace.seconds == 10.0


def test_copies_of_one_direction_wait_for_each_other(graph: Graph) -> None:
    both = "compute 0, compute 1, offload 0, offload 1, free 1, fetch 1, compute 2, compute 3"
    trace = simulate(graph, _steps(both), link_bytes_per_second=RATES)
    # out: 2..4 and 4..5, for which the device waits; back: 5..7
    assert trace.start_seconds.tolist() == [0, 1, 2, 4, 5, 5, 7, 12]
    assert trace.host_peak_bytes == 6


def test_an_op_that_makes_a_value_anew_waits_for_its_copies(graph: Graph) -> None:
    again = "compute 0, offload 0, compute 0, compute 1, compute 2, compute 3"
    trace = simulate(graph, _steps(again), link_bytes_per_second=RATES)
    assert trace.start_seconds.tolist() == [0, 1, 3, 4, 5, 10]


def test_an_action_of_ones_own(graph: Graph, evict: Action) -> None:
    trace = simulate(
        graph,
        _steps("compute 0, compute 1, evict 0, compute 2, fetch 0, compute 3"),
        link_bytes_per_second=RATES,
    )
    assert trace.start_seconds.tolist() == [0, 1, 2, 4, 9, 13]
    assert trace.live_bytes.tolist() == [4, 6, 2, 7, 8, 9]


def test_a_value_that_is_away_is_held_nowhere_else(graph: Graph) -> None:
    schedule = _steps(AWAY.format("free 0, ", ""))
    assert [x.value.name for x in live_at(graph, schedule, 4)] == ["b", "c"]
    assert len(step_phases(graph, schedule)) == len(schedule.steps)
    assert schedule.order == (0, 1, 2, 3)
    assert schedule.moves


def test_without_transfers_nothing_waits(graph: Graph) -> None:
    trace = simulate(graph, plain_schedule(graph))
    assert (trace.seconds, trace.host_peak_bytes, trace.busy_seconds) == (8.0, 0, {})
    assert not plain_schedule(graph).moves


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("compute 0, offload 0, fetch 0", "fetchs 'a', which is already live"),
        ("compute 0, free 0, fetch 0", "fetchs 'a', which is not on the host"),
        ("offload 0", "offloads 'a', which is not live"),
        ("compute 0, offload 0, free 0, compute 1", "its input 'a' is not live"),
        ("compute 0, offload 0, offload 0", "already on the host"),
        ("compute 0, offload 0, free 0, fetch 0, free 0, fetch 0", "not on the host"),
        ("compute 0, compute 1, compute 2, compute 3, offload 4", "resident"),
    ],
)
def test_what_cannot_be_done_is_named(graph: Graph, steps: str, said: str) -> None:
    given = Graph(graph.ops, (*graph.values, Value("w", 1)))
    with pytest.raises(InvalidSchedule, match=said):
        simulate(given, _steps(steps), link_bytes_per_second=RATES)


def test_a_link_without_a_rate_is_named(graph: Graph) -> None:
    with pytest.raises(InvalidSchedule, match="rate of that link is not known"):
        simulate(graph, _steps(AWAY.format("", "free 0, ")))
