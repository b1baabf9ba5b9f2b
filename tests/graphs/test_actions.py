"""Actions are rows: one that is entered here goes through simulate, snapshots and schedules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

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
def offload() -> Iterator[Action]:
    made = Action("offload", Subject.VALUE, Copy.DROPPED, Copy.TAKEN, Clock.TO_HOST)
    yield register_action(made)
    del ACTIONS["offload"]


@pytest.fixture
def fetch() -> Iterator[Action]:
    made = Action("fetch", Subject.VALUE, Copy.TAKEN, Copy.DROPPED, Clock.FROM_HOST)
    yield register_action(made)
    del ACTIONS["fetch"]


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


def _away(offload: Action, fetch: Action, *, fetch_before: int = 3) -> Schedule:
    steps = [Step(Action.COMPUTE, i) for i in range(4)]
    steps.insert(fetch_before, Step(fetch, 0))
    steps.insert(2, Step(offload, 0))
    return Schedule(tuple(steps))


def test_an_action_is_its_name() -> None:
    assert pickle.loads(pickle.dumps(Action.FREE)) is Action.FREE
    assert copy.deepcopy(Step(Action.COMPUTE, 1)).action is Action.COMPUTE


def test_a_name_is_given_once(offload: Action) -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_action(offload)


def test_bytes_leave_when_the_copy_has_ended(graph: Graph, offload: Action, fetch: Action) -> None:
    trace = simulate(graph, _away(offload, fetch), link_bytes_per_second=RATES)
    # a, b, then 4 bytes leave in 2 s while c runs; they are back 4 s after c has ended
    assert trace.live_bytes.tolist() == [4, 6, 6, 11, 8, 9]
    assert trace.start_seconds.tolist() == [0, 1, 2, 2, 7, 11]
    assert trace.seconds == 12.0
    assert trace.host_peak_bytes == 4
    assert trace.busy_seconds == {Clock.TO_HOST: 2.0, Clock.FROM_HOST: 4.0}


def test_a_value_that_is_away_is_held_nowhere_else(
    graph: Graph, offload: Action, fetch: Action
) -> None:
    schedule = _away(offload, fetch)
    assert [x.value.name for x in live_at(graph, schedule, 3)] == ["b", "c"]
    assert len(step_phases(graph, schedule)) == len(schedule.steps)
    assert schedule.order == (0, 1, 2, 3)


def test_without_transfers_nothing_waits(graph: Graph) -> None:
    trace = simulate(graph, plain_schedule(graph))
    assert (trace.seconds, trace.host_peak_bytes, trace.busy_seconds) == (8.0, 0, {})


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("compute 0, fetch 0", "fetchs 'a', which is already live|not on the host"),
        ("offload 0", "offloads 'a', which is not live"),
        ("compute 0, offload 0, compute 1", "its input 'a' is not live"),
    ],
)
def test_what_cannot_be_done_is_named(
    graph: Graph, offload: Action, fetch: Action, steps: str, said: str
) -> None:
    parts = (part.split() for part in steps.split(", "))
    schedule = Schedule(tuple(Step(ACTIONS[name], int(i)) for name, i in parts))
    with pytest.raises(InvalidSchedule, match=said):
        simulate(graph, schedule, link_bytes_per_second=RATES)


def test_a_link_without_a_rate_is_named(graph: Graph, offload: Action, fetch: Action) -> None:
    with pytest.raises(InvalidSchedule, match="rate of that link is not known"):
        simulate(graph, _away(offload, fetch))
