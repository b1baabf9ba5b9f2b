"""An answer is a schedule: ``solve`` judges it as it is and returns it untouched."""

from __future__ import annotations

from typing import Any

import pytest

from planner.graphs import Action, Graph, Schedule, Step, plain_schedule, simulate
from planner.solvers import (
    SOLVERS,
    Answer,
    Limits,
    Status,
    floor_bytes,
    given_order,
    minimum_budget,
    solve,
)
from planner.solvers import reorder as reordering
from planner.solvers.model.master import MasterResult, solve_master
from planner.solvers.search import time_cuts
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import ANY_GAP
from tests.strategies import chain, transformer

CHAIN = chain(4)
PEAK = simulate(CHAIN, plain_schedule(CHAIN)).peak_bytes
IDLE = Schedule(
    tuple(Step(Action.COMPUTE, i) for i in range(len(CHAIN.ops)))
    + tuple(s for s in plain_schedule(CHAIN).steps if s.action is Action.FREE)
)
"""Every value is freed at the end only."""


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> str:
    def answer(graph: Graph, budget_bytes: int, limits: Limits) -> Answer:
        return Answer(Status.FEASIBLE, IDLE, message=f"{graph.name} {budget_bytes} {limits.seed}")

    monkeypatch.setitem(SOLVERS, "idle", answer)
    return "idle"


def test_the_schedule_is_returned_as_it_is(idle: str) -> None:
    held = simulate(CHAIN, IDLE).peak_bytes
    assert held > PEAK
    solution = solve(CHAIN, held, method=idle)
    assert solution.schedule is IDLE
    assert solution.message == f"chain {held} 0"


def test_the_schedule_is_judged_as_it_is(idle: str) -> None:
    with pytest.raises(RuntimeError, match=f"over the budget of {PEAK}: please report this"):
        solve(CHAIN, PEAK, method=idle)


def test_an_order_becomes_the_schedule_that_frees_early() -> None:
    answer = Answer.of_order(CHAIN, Status.OPTIMAL, range(len(CHAIN.ops)), 8.0, "why")
    assert answer == Answer(Status.OPTIMAL, plain_schedule(CHAIN), 8.0, "why")


@pytest.mark.parametrize("method", ["auto", "reorder"])
def test_a_bound_above_the_schedule_is_an_error(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = transformer(2)
    budget = int(0.8 * simulate(graph, plain_schedule(graph)).peak_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(given_order, "TINY_OPS", 0)
        patch.setattr(Search, "raise_bound", lambda self, _: setattr(self, "bound", 9.0))
        patch.setattr(reordering, "any_order_bound", lambda graph, *_: 9.0 * graph.seconds)
        with pytest.raises(RuntimeError, match="above its own schedule's"):
            solve(graph, budget, method=method)


def test_a_plan_that_time_cut_off_says_so() -> None:
    graph = transformer(8, width=64, square=128)
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    brief = solve(graph, peak // 2, limits=Limits(seconds=0.05, gap=0.0))
    assert "stopped by the limit in seconds" in brief.message
    assert solve(graph, peak).message == ""


def test_where_any_schedule_will_do_the_first_is_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, masters = transformer(2), list[int]()

    def counted(*given: Any, **options: Any) -> MasterResult:
        masters.append(given[1])
        return solve_master(*given, **options)

    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    least = minimum_budget(graph).least_bytes
    monkeypatch.setattr(time_cuts, "solve_master", counted)
    budget = (least + peak) // 2
    assert solve(graph, budget, limits=Limits(gap=ANY_GAP)).schedule is not None
    assert not masters
    assert solve(graph, budget).schedule is not None
    assert masters
    assert solve(graph, least, limits=Limits(gap=ANY_GAP)).schedule is not None
    assert solve(graph, floor_bytes(graph) - 1, limits=Limits(gap=ANY_GAP)).schedule is None
