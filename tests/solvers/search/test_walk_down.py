"""Plans of larger budgets walked down: they fit, never cost more, and often less."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
from planner.graphs import read_graph, schedule_from_order, simulate
from planner.solvers import minimum_budget, solve
from planner.solvers.model.problem import flatten
from planner.solvers.search.incumbent import Search
from planner.solvers.search.relaxed_masters import run_relaxed
from planner.solvers.search.walk_down import walk_down

INSTANCES = Path(benchmarks.__file__).parent / "instances"


def relaxed(search: Search) -> None:
    run_relaxed(search, target=0.003, enough=0.01, deadline=search.deadline)


@pytest.mark.parametrize(("name", "better"), [("resnet_4_blocks", 2), ("gpt2_2_layers", 1)])
def test_it_fits_costs_no_more_and_often_less(name: str, better: int) -> None:
    graph = read_graph(INSTANCES / f"{name}.json")
    least, cheaper = minimum_budget(graph).least_bytes, 0
    for times in (1.02, 1.03, 1.08):
        budget = int(times * least)
        search = Search(flatten(graph), budget)
        relaxed(search)
        before, proved = search.extra, search.bound
        walk_down(search, relaxed)
        assert search.bound >= proved
        assert search.extra <= before
        if search.order is not None:
            trace = simulate(graph, schedule_from_order(graph, search.order))
            assert trace.peak_bytes <= budget
            assert trace.seconds == pytest.approx(search.base + search.extra)
            assert search.bound <= search.extra
        if (found := solve(graph, budget, method="blocks_greedy").schedule) is not None:
            cost = simulate(graph, found).seconds - search.base
            assert search.bound <= cost * (1 + 1e-9), "the bound of a larger budget is none"
        cheaper += search.extra < before
    assert cheaper >= better
