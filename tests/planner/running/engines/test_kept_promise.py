"""Solving for what a compiler says, with one that says so much more or less than the buffers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from planner.errors import InfeasibleBudget
from planner.graphs import Graph, Schedule, plain_schedule, simulate
from planner.graphs.capture.fused.compiled_step import Asked
from planner.graphs.capture.fused.other_calls import ALONE
from planner.graphs.capture.training_step import Captured
from planner.request import Request, request_of
from planner.running.engines import kept_promise
from planner.running.engines.kept_promise import EXCESS, as_said, settled
from planner.solvers import Limits, Solution, Status, minimum_budget, solve
from planner.solvers.minimum_budget import proven_floor
from tests.strategies import transformer


class Alone:
    """A step of which one call waits at a time."""

    calls = ALONE


@dataclass(frozen=True)
class Compiler(Alone):
    """Says that every schedule that repeats something holds a share of its buffers."""

    graph: Graph
    share: float

    def asked(self, schedule: Schedule) -> Asked:
        again = len(schedule.order) > len(self.graph.ops)
        own = simulate(self.graph, schedule).peak_bytes
        return Asked(int(own * self.share) if again else own, str(hash(schedule)))


@pytest.fixture
def request_said() -> Request:
    said = {"inputs": torch.zeros(1, 2), "optimizer": None, "limits": Limits(seconds=2)}
    return request_of(nn.Linear(2, 2), {**said, "engine": "inductor", "device": "cpu"})


@pytest.fixture
def graph() -> Graph:
    """A step in bytes that a margin of a hundredth can be told of."""
    found = transformer(3)
    values = (replace(v, size_bytes=1000 * v.size_bytes) for v in found.values)
    return replace(found, values=tuple(values))


@pytest.mark.parametrize("share", [0.8, 1.0, 1.15])
def test_what_the_compiler_says_is_predicted_and_within_the_budget(
    graph: Graph, share: float, request_said: Request
) -> None:
    budget = int(0.8 * simulate(graph, plain_schedule(graph)).peak_bytes)
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, Compiler(graph, share)))
    found = settled(captured, budget, request_said)
    schedule = found.solution.schedule
    assert schedule is not None
    held = Compiler(graph, share).asked(schedule).peak_bytes
    predicted = found.held_bytes or simulate(found.captured.graph, schedule).peak_bytes
    assert held <= predicted <= min(budget, int(1.01 * held) + 1)
    own, said = as_said(found.captured.graph, predicted)
    assert own == graph
    assert held <= said <= held + 1
    assert (found.held_bytes is not None) == (share < 1)
    assert any(v.name == EXCESS for v in found.captured.graph.values) == (share >= 1)
    usual = solve(graph, budget, method="auto", limits=Limits(seconds=2)).schedule
    assert usual is not None
    assert found.solution.bound_seconds <= simulate(graph, schedule).seconds
    if share < 1:  # what the compiler leaves free is made use of
        assert simulate(graph, schedule).seconds < simulate(graph, usual).seconds


@dataclass(frozen=True)
class Counting(Alone):
    """Says that every schedule holds a share of what moves beyond it; notes its questions."""

    graph: Graph
    share: float
    questions: list[Schedule]

    def asked(self, schedule: Schedule) -> Asked:
        own = simulate(self.graph, schedule).peak_bytes
        if len(schedule.order) > len(self.graph.ops):
            self.questions.append(schedule)
        beside = plain_moving(self.graph) * self.share
        return Asked(int(own + beside), str(hash(schedule)))


def plain_moving(graph: Graph) -> int:
    return simulate(graph, plain_schedule(graph)).peak_bytes - graph.resident_bytes


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_margin_and_what_is_known_of_the_compiler_are_left_free_before_it_is_asked(
    graph: Graph, share: float, request_said: Request
) -> None:
    questions: list[Schedule] = []
    compiler = Counting(graph, share, questions)
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, compiler))
    budget = graph.resident_bytes + int(0.8 * plain_moving(graph))
    found = settled(captured, budget, request_said).solution.schedule
    assert found is not None
    assert found == questions[0]
    assert len(questions) == 1
    assert compiler.asked(found).peak_bytes <= budget


def test_where_only_the_compilers_own_is_too_much_little_is_repeated(
    graph: Graph, request_said: Request
) -> None:
    """What repeats nothing fits by its buffers, and not by what the compiler holds."""
    compiler = Counting(graph, 0.1, [])
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, compiler))
    budget = graph.resident_bytes + int(1.05 * plain_moving(graph))
    found = settled(captured, budget, request_said).solution.schedule
    assert found is not None
    usual = graph.resident_bytes + int(0.92 * plain_moving(graph))
    known = solve(graph, usual, method="auto", limits=Limits(seconds=2)).schedule
    assert known is not None
    assert simulate(graph, found).seconds <= simulate(graph, known).seconds


@dataclass(frozen=True)
class Jumping(Alone):
    """Fuses what repeats much, which then holds far less, and what repeats little not at all."""

    graph: Graph
    border: float

    def asked(self, schedule: Schedule) -> Asked:
        own = simulate(self.graph, schedule).peak_bytes
        again = len(schedule.order) > len(self.graph.ops)
        much = own - self.graph.resident_bytes < self.border * plain_moving(self.graph)
        share = (0.6 if much else 1.08) if again else 1.0
        return Asked(int(own * share), str(hash(schedule)))


@pytest.mark.parametrize("border", [0.5, 0.6, 0.7])
def test_what_is_held_may_jump(graph: Graph, border: float, request_said: Request) -> None:
    """No target is tried that lies beyond one that was not kept, and none is given up for it."""
    compiler = Jumping(graph, border)
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, compiler))
    budget = graph.resident_bytes + int(0.8 * plain_moving(graph))
    found = settled(captured, budget, request_said).solution.schedule
    assert found is not None
    assert 1.01 * compiler.asked(found).peak_bytes <= 1.01 * budget
    near = graph.resident_bytes + int((border - 0.03) * plain_moving(graph))
    known = solve(graph, near, method="auto", limits=Limits(seconds=2)).schedule
    assert known is not None
    assert simulate(graph, found).seconds <= 1.02 * simulate(graph, known).seconds


@dataclass(frozen=True)
class Patient(Alone):
    """Takes its time before it says what another says."""

    other: Compiler
    seconds: float

    def asked(self, schedule: Schedule) -> Asked:
        time.sleep(self.seconds)
        return self.other.asked(schedule)


def test_asking_takes_none_of_the_seconds_in_which_it_is_solved(
    graph: Graph, request_said: Request
) -> None:
    """A compiler that needs longer than the limit for each answer gets the same plan."""
    budget = int(0.8 * simulate(graph, plain_schedule(graph)).peak_bytes)
    quick, within = Compiler(graph, 1.15), replace(request_said, limits=Limits(seconds=1))
    found = [
        settled(Captured(graph, {"compiled": {}}, compiled=cast(Any, c)), budget, within)
        for c in (quick, Patient(quick, 1.1))
    ]
    assert found[0].solution.schedule == found[1].solution.schedule


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_why_nothing_fits_is_not_said_of_more_than_the_compiler_needs(
    graph: Graph, share: float, request_said: Request
) -> None:
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, Compiler(graph, share)))
    reason = solve(graph, 1000, method="auto", limits=Limits(seconds=2)).message
    assert reason
    with pytest.raises(InfeasibleBudget) as found:
        settled(captured, 1000, request_said)
    assert (found.value.least_bytes < proven_floor(graph)) == (share < 1)
    assert (reason in str(found.value)) == (share == 1)


def test_the_least_budget_is_never_more_than_what_repeats_nothing_holds(
    graph: Graph, request_said: Request
) -> None:
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, Compiler(graph, 3.0)))
    with pytest.raises(InfeasibleBudget) as found:
        settled(captured, 1000, request_said)
    plain = simulate(graph, plain_schedule(graph)).peak_bytes
    assert found.value.least_bytes <= 1.01 * plain
    settled(captured, found.value.least_bytes, request_said)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Budgets that were solved for from the beginning."""
    noted: list[int] = []
    usual = kept_promise.solve_for_calls

    def noting(graph: Graph, budget_bytes: int, *said: Any, **more: Any) -> Solution:
        noted.append(budget_bytes)
        return usual(graph, budget_bytes, *said, **more)

    monkeypatch.setattr(kept_promise, "solve_for_calls", noting)
    return noted


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_correction_is_what_was_found_made_to_fit_and_not_solved_anew(
    graph: Graph, share: float, request_said: Request, solved: list[int]
) -> None:
    compiler = Counting(graph, share, [])
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, compiler))
    budget = graph.resident_bytes + int(0.8 * plain_moving(graph))
    found = settled(captured, budget, request_said).solution
    assert solved == [budget]
    assert found.schedule is not None
    assert compiler.asked(found.schedule).peak_bytes <= budget
    assert found.bound_seconds <= simulate(graph, found.schedule).seconds


def test_where_nothing_can_be_made_to_fit_the_tightest_is_asked_of(
    graph: Graph, request_said: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of no other that is known to hold more, once there is a plan."""
    nothing = Solution(Status.UNKNOWN, None, 0.0, "")
    monkeypatch.setattr(kept_promise, "tightened", lambda *said: nothing)
    compiler = Counting(graph, 0.1, [])
    captured = Captured(graph, {"compiled": {}}, compiled=cast(Any, compiler))
    least = minimum_budget(graph, limits=Limits(seconds=2)).least_bytes
    budget = least + int(0.13 * plain_moving(graph))
    found = settled(captured, budget, request_said).solution.schedule
    assert found is not None
    assert compiler.asked(found).peak_bytes <= budget
    first, tightest = (simulate(graph, s).peak_bytes for s in compiler.questions[:2])
    assert tightest == least < first
    assert len(compiler.questions) == 3
