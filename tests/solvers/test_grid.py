"""Every solver on every instance; a new solver is covered by being registered."""

from __future__ import annotations

from functools import cache

import pytest

from planner.graphs import simulate
from planner.solvers import SOLVERS, Limits, Solution, Status, solve
from tests.solvers.instances import FRACTIONS, INSTANCES, budget_of

LIMITS = Limits(seconds=2)
EVERY = [(name, fraction) for name in INSTANCES for fraction in FRACTIONS]
ALWAYS_CHECKPOINTS = {"blocks", "recompute_all"}
"""Solvers that recompute even where the budget does not ask for it."""


@cache
def _solved(method: str, name: str, fraction: float) -> Solution:
    graph = INSTANCES[name]
    return solve(graph, budget_of(graph, fraction), method=method, limits=LIMITS)


@pytest.mark.parametrize(("name", "fraction"), EVERY)
@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_every_answer_is_consistent(method: str, name: str, fraction: float) -> None:
    graph, solution = INSTANCES[name], _solved(method, name, fraction)
    if solution.schedule is None:
        assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)
        assert solution.message
        return
    trace = simulate(graph, solution.schedule)
    assert solution.status in (Status.OPTIMAL, Status.FEASIBLE)
    assert trace.peak_bytes <= budget_of(graph, fraction)
    assert graph.seconds <= solution.bound_seconds <= trace.seconds


@pytest.mark.parametrize(("name", "fraction"), EVERY)
def test_no_bound_is_above_any_schedule(name: str, fraction: float) -> None:
    solved = {method: _solved(method, name, fraction) for method in sorted(SOLVERS)}
    solved = {method: s for method, s in solved.items() if not s.reordered}
    found = [s.schedule for s in solved.values() if s.schedule]
    least = min((simulate(INSTANCES[name], s).seconds for s in found), default=float("inf"))
    for method, solution in solved.items():
        assert solution.bound_seconds <= least * (1 + 1e-6), method
        assert not (found and solution.status is Status.INFEASIBLE), method


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_a_budget_for_plain_training_costs_nothing(method: str, name: str) -> None:
    solution = _solved(method, name, 1.0)
    if method.startswith("blocks") and "no op has a module path" in solution.message:
        assert name in ("chain", "random")
    elif method not in ALWAYS_CHECKPOINTS:
        assert solution.status is Status.OPTIMAL
        assert solution.schedule is not None
        assert solution.schedule.is_plain


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("method", sorted(set(SOLVERS) - {"milp", "milp_cbc", "auto"}))
def test_more_budget_never_costs_more(method: str, name: str) -> None:
    costs = [
        simulate(INSTANCES[name], s.schedule).seconds if s.schedule else float("inf")
        for s in (_solved(method, name, fraction) for fraction in FRACTIONS)
    ]
    assert costs == sorted(costs)


@pytest.mark.parametrize("method", sorted(set(SOLVERS) - {"milp", "milp_cbc"}))
def test_the_same_seed_gives_the_same_schedule(method: str) -> None:
    graph = INSTANCES["unet"]
    again = solve(graph, budget_of(graph, 0.7), method=method, limits=LIMITS)
    assert again == _solved(method, "unet", 0.7)


def test_unknown_methods_list_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'best'; valid methods: auto, blocks"):
        solve(INSTANCES["chain"], 10, method="best")
