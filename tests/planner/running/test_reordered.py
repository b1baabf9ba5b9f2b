"""Planned steps whose ops first run in another order than the model's, equal to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.compared import Comparison, MethodResult
from planner.graphs import plain_schedule, schedule_from_order, simulate
from planner.plans import Plan
from planner.solvers import Status, solve
from planner.solvers.model.precedence import freedom, permuted
from tests.asked import plan_graph
from tests.layers import SCENES
from tests.orders import random_order
from tests.scenes import Apply
from tests.training import AMPLE, Scene, assert_same, measured_peak, train

HARD = (
    "attention",
    "autocast",
    "batch_norm",
    "batch_norm_called_twice",
    "dropout",
    "loss_callable_with_targets",
    "lstm_with_dropout",
    "output_differentiated_later",
    "several_outputs",
    "tied_three_times",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _shuffled(scene: Scene, model: nn.Module, seed: int) -> Plan:
    """Plan a random order of first runs that recomputes all it can."""
    captured = scene.capture(model)
    order = random_order(freedom(captured.graph), random.Random(seed))
    solution = solve(permuted(captured.graph, order), AMPLE, method="recompute_all")
    assert solution.schedule is not None
    again = [order[i] for i in solution.schedule.order]
    plan = plan_graph(captured, AMPLE, method="plain")
    schedule = schedule_from_order(captured.graph, again)
    return replace(plan, schedule=schedule, bound_seconds=0.0, loss=scene.loss)


@pytest.mark.parametrize("name", HARD)
def test_any_order_allowed_changes_no_bit(name: str) -> None:
    scene = SCENES[name]
    plain = train(scene, scene.model(), steps=2)
    model = scene.model()
    plan = _shuffled(scene, model, seed=0)
    assert plan.reordered
    assert plan.recomputed
    assert_same(plain, train(scene, plan.apply(model), steps=2))


def _wide() -> Scene:
    """Return branches that all grow before any is reduced, none of it kept for backward."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        grown = [(x + k).repeat(1, 64) for k in range(12)]
        return m.mix(torch.stack([g.sum(1) for g in grown], 1)).square().mean()

    return Scene(lambda: Apply(run, mix=nn.Linear(12, 4)), lambda: torch.randn(64, 32))


def test_a_poor_order_is_left_and_the_plan_says_so() -> None:
    scene = _wide()
    model = scene.model()
    graph = scene.capture(model).graph
    budget = simulate(graph, plain_schedule(graph)).peak_bytes // 4
    plan = planner.fit(model, budget, inputs=scene.call(), optimizer=None)
    assert plan.reordered
    assert plan.seconds == pytest.approx(plan.plain_seconds)
    assert "ops were reordered" in str(plan)
    assert "the bound holds for any order" in " ".join(str(plan).split())
    assert_same(train(scene, scene.model()), train(scene, plan.apply(model)))
    assert measured_peak(scene, plan.apply(scene.model())) <= budget
    kept = planner.fit(
        model, budget, inputs=scene.call(), optimizer=None, limits=planner.Limits(reorder=False)
    )
    assert not kept.reordered
    assert kept.seconds > plan.seconds


def test_gaps_of_reordered_plans_are_to_bounds_for_any_order() -> None:
    def row(method: str, seconds: float, bound: float, *, reordered: bool = False) -> MethodResult:
        return MethodResult(method, Status.FEASIBLE, 5, seconds, bound, 0.1, "", reordered)

    free, kept = row("reorder", 10.5, 10.0, reordered=True), row("auto", 13.0, 12.0)
    found = Comparison(5, 9, 10.0, (free, kept))
    assert found.bound_seconds == 12.0
    assert found.gap(free) == pytest.approx(0.05)
    assert found.gap(kept) == pytest.approx(0.1)
    assert "Reordered, with gaps to bounds for any order: reorder" in str(found)
    assert found.to_json()["rows"][0]["reordered"] is True
