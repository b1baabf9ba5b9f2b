"""From a captured step or a model to a plan, and the errors on the way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import (
    BadBudget,
    BadCluster,
    CaptureError,
    InfeasibleBudget,
    UnknownDevice,
    UnknownMethod,
)
from planner.graphs import Kind, Phase, plain_schedule, simulate
from planner.graphs.capture.call_arguments import arguments
from planner.planning_again import plan_again
from tests.asked import plan_graph

MB = 10**6


def test_plan_graph_fits_a_budget_the_plain_step_exceeds(captured: Any) -> None:
    plain = simulate(captured.graph, plain_schedule(captured.graph)).peak_bytes
    plan = plan_graph(captured, plain - 20 * MB)
    assert plan.fits
    assert plan.plain_peak_bytes == plain > plan.budget_bytes
    assert 0 < plan.bound_overhead <= plan.overhead
    assert plan.signature == captured.signature


def test_plenty_of_memory_costs_nothing(captured: Any) -> None:
    plan = plan_graph(captured, 10**12)
    assert (plan.overhead, plan.gap, plan.status.name) == (0.0, 0.0, "OPTIMAL")
    assert plan.recomputed == ()


def test_same_step_same_plan(captured: Any) -> None:
    assert plan_graph(captured, 200 * MB) == plan_graph(captured, 200 * MB)


def test_progress_is_told_in_sentences(captured: Any) -> None:
    said: list[str] = []
    plan_graph(captured, 10**9, progress=said.append)
    assert said == ["solving 18 ops within 1.00 GB (954 MiB) by auto"]


def test_infeasible_budget_names_everything(captured: Any) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        plan_graph(captured, 100 * MB)
    error = caught.value
    assert error.budget_bytes == 100 * MB < error.least_bytes
    assert error.binding.phase is Phase.BACKWARD
    assert error.binding.category is Kind.ACTIVATION
    assert error.binding.peak_bytes == error.least_bytes
    for part in (
        "100 MB (95.4 MiB)",
        f"{error.least_bytes} bytes",
        error.binding.op,
        "micro-batch",
    ):
        assert part in str(error)


def test_the_least_budget_works(captured: Any) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        plan_graph(captured, 100 * MB)
    assert plan_graph(captured, caught.value.least_bytes).fits


def test_a_method_that_finds_nothing_points_to_what_does(captured: Any) -> None:
    with pytest.raises(InfeasibleBudget, match="method='auto'") as caught:
        plan_graph(captured, 200 * MB, method="plain")
    assert caught.value.least_bytes <= 200 * MB


def test_unknown_method_lists_the_valid_ones(captured: Any) -> None:
    with pytest.raises(UnknownMethod, match=r"did you mean 'auto'.*plain"):
        plan_graph(captured, 10**9, method="outo")


@pytest.fixture(scope="module")
def roomy(make_net: Callable[[], nn.Module]) -> planner.Plan:
    return planner.fit(make_net(), "1GB", inputs=torch.zeros(4096, 16))


def test_fit_a_real_model(roomy: planner.Plan) -> None:
    assert roomy.fits
    assert roomy.overhead == 0.0
    assert roomy.signature["model"] == "Net"
    assert set(roomy.memory) == {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER}
    assert roomy.memory[Phase.OPTIMIZER][Kind.OPTIMIZER] >= 2 * 4 * (16 * 16 + 16) * 4
    assert (roomy.device, roomy.optimizer, roomy.costs) == ("cpu", "adamw", "roofline")
    assert roomy.capture_seconds > 0


def test_fit_recomputes_when_it_must(
    roomy: planner.Plan, make_net: Callable[[], nn.Module]
) -> None:
    budget = int(0.75 * roomy.peak_bytes)
    plan = planner.fit(make_net(), budget, inputs=torch.zeros(4096, 16))
    assert plan.peak_bytes <= budget < plan.plain_peak_bytes == roomy.peak_bytes
    assert plan.recomputed
    assert plan == planner.fit(make_net(), budget, inputs=torch.zeros(4096, 16))


def test_a_saved_plan_of_a_real_model(roomy: planner.Plan, tmp_path: Any) -> None:
    roomy.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == roomy


def test_without_optimizer_its_state_is_left_out(
    roomy: planner.Plan, make_net: Callable[[], nn.Module]
) -> None:
    plan = planner.fit(make_net(), "1GB", inputs=torch.zeros(4096, 16), optimizer=None)
    assert Phase.OPTIMIZER not in plan.memory
    assert plan.graph.resident_bytes < roomy.graph.resident_bytes
    assert "left out" in str(plan)


def test_percentage_is_of_the_named_device(make_net: Callable[[], nn.Module]) -> None:
    plan = planner.fit(make_net(), "50%", inputs=torch.zeros(8, 16), device="L4")
    assert 11e9 < plan.budget_bytes < 12e9
    assert plan.device == "L4"


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"budget": "lots"}, BadBudget, "40GiB"),
        ({"method": "magic"}, UnknownMethod, "valid methods"),
        ({"device": "abacus"}, UnknownDevice, "H100"),
        ({"world_size": 0}, BadCluster, "world size of 0"),
        ({"world_size": 2, "accumulate": True}, BadCluster, "global_batch"),
        ({"optimizer": "adamwww"}, CaptureError, "adamwww"),
        ({"costs": "guessed"}, CaptureError, "roofline"),
        ({"inputs": torch.zeros(8, 3)}, CaptureError, "reduction dim"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any],
    error: type[Exception],
    reason: str,
    make_net: Callable[[], nn.Module],
) -> None:
    with pytest.raises(error, match=reason):
        planner.fit(make_net(), **({"budget": "1GB", "inputs": torch.zeros(8, 16)} | arguments))


def test_planning_does_not_change_the_model(make_net: Callable[[], nn.Module]) -> None:
    model = make_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    planner.fit(model, "1GB", inputs=torch.zeros(8, 16))
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_refit_plans_another_call_within_the_same_budget(
    roomy: planner.Plan, make_net: Callable[[], nn.Module]
) -> None:
    tight = replace(roomy, budget_bytes=int(0.75 * roomy.peak_bytes), method="blocks_greedy")
    again = plan_again(tight, make_net(), arguments((torch.zeros(1024, 16),), {}), None)
    assert "1024, 16" in again.signature["inputs"][0]
    assert (again.budget_bytes, again.method) == (tight.budget_bytes, "blocks_greedy")
    assert (again.optimizer, again.device) == (roomy.optimizer, roomy.device)
    assert again.fits


def test_a_plan_of_a_card_is_made_anew_for_the_cpu(make_net: Callable[[], nn.Module]) -> None:
    made = {"inputs": torch.zeros(8, 16), "method": "plain"}
    plan = planner.fit(make_net(), "20GB", device="T4", allocator="expandable segments", **made)
    assert isinstance(plan, planner.Plan)
    again = plan_again(plan, make_net(), arguments((torch.zeros(8, 16),), {}), None)
    assert (again.device, again.allocator, again.fits) == ("cpu", None, True)
