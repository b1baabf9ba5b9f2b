"""Plans from blocks: they fit, cost no less than is proved, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
from planner.graphs import Graph, read_graph, schedule_from_order, simulate
from planner.solvers import Limits, minimum_budget, solve
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.model.problem import flatten
from planner.solvers.model.stretch import stretch
from planner.solvers.search import block_plans
from planner.solvers.search.block_plans import plan_blocks
from planner.solvers.search.incumbent import Search
from planner.solvers.tuning import ANY_GAP
from tests.strategies import chain, transformer

GPT2 = read_graph(Path(benchmarks.__file__).parent / "instances" / "gpt2_2_layers.json")


def planned(graph: Graph, budget: int) -> Search:
    search = Search(flatten(graph), budget)
    plan_blocks(search, graph, Limits())
    return search


@pytest.mark.parametrize(
    ("graph", "budgets"),
    [(transformer(4), (400, 600)), (GPT2, (7_000_000, 8_500_000))],
    ids=["transformer", "gpt2"],
)
def test_plans_fit_cost_no_less_than_is_proved_and_are_always_the_same(
    graph: Graph, budgets: tuple[int, ...]
) -> None:
    for budget in budgets:
        search = planned(graph, budget)
        assert search.order is not None
        trace = simulate(graph, schedule_from_order(graph, search.order))
        assert trace.peak_bytes <= budget
        assert trace.seconds == pytest.approx(search.base + search.extra)
        assert list(dict.fromkeys(search.order)) == list(range(search.problem.n))
        assert trace.seconds >= quick_bound(graph, budget) * (1 - 1e-9)
        assert planned(graph, budget).order == search.order


def test_a_graph_without_blocks_is_left_alone() -> None:
    assert planned(chain(6), 4).order is None


def test_a_better_plan_is_kept() -> None:
    graph = transformer(4)
    search = Search(flatten(graph), 600)
    search.extra, search.order = 0.0, [0]
    plan_blocks(search, graph, Limits())
    assert search.order == [0]


def test_what_a_layer_reads_may_be_given_up_and_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = 6_940_000  # no layer fits beside its own input
    search = Search(flatten(GPT2), tight)
    plan_blocks(search, GPT2, Limits(gap=ANY_GAP), target=ANY_GAP, together=(1,))
    assert search.order is not None
    schedule = schedule_from_order(GPT2, search.order)
    assert simulate(GPT2, schedule).peak_bytes <= tight
    monkeypatch.setattr(block_plans, "_with_makers", lambda *_: None)
    search = Search(flatten(GPT2), tight)
    plan_blocks(search, GPT2, Limits(gap=ANY_GAP), target=ANY_GAP, together=(1,))
    assert search.order is None


def test_the_least_budget_is_searched_by_blocks() -> None:
    found = minimum_budget(GPT2)
    assert found.floor_bytes <= found.least_bytes <= 6_940_000  # 7.33 MB by evicting alone
    assert simulate(GPT2, found.schedule).peak_bytes == found.least_bytes
    solved = solve(GPT2, found.least_bytes, limits=Limits(gap=ANY_GAP))
    assert solved.schedule is not None


def test_what_fits_in_less_room_fits_in_more() -> None:
    search = Search(flatten(GPT2), 8_000_000)
    stretches = block_plans._Stretches(search, Limits())
    order = list(range(search.problem.n))
    part = stretch(search.problem, order, 0, 20)
    kind, room = block_plans._kind(part), stretches._room(part)
    stretches.known[kind] = {room: None, room - 1: (3.0, [0, 1])}
    assert stretches._solved(kind, part) == (3.0, [0, 1])
