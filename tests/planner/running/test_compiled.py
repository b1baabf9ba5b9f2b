"""The engine that runs through torch.compile: what it promises, with kernels that are stubs.

Where bits are compared, kernels are real and come of the C++ compiler.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from benchmarks.models.tiny import small_unet
from benchmarks.stubs import stubs
from planner.running.compiled_model import without_plan
from tests.compiled import QUICK, Broken, Net, gradients, measured_bytes, net, static_bytes, step


@pytest.fixture(scope="module")
def plain() -> planner.Plan:
    model, x = net()
    return planner.fit(model, "1GB", inputs=x, engine="inductor", **QUICK)


def budget(plain: planner.Plan, share: float) -> int:
    """Return a budget that leaves a share of what moves in a step."""
    fixed = plain.graph.resident_bytes
    return int(fixed + share * (plain.plain_peak_bytes - fixed))


@pytest.fixture(scope="module")
def tight(plain: planner.Plan) -> planner.Plan:
    model, x = net()
    return planner.fit(model, budget(plain, 0.7), inputs=x, engine="inductor", **QUICK)


def test_a_plan_within_a_large_budget_repeats_nothing(plain: planner.Plan) -> None:
    assert plain.fits
    assert plain.status is planner.Status.OPTIMAL
    assert not plain.recomputed
    assert plain.engine == "inductor"
    assert plain.overhead == plain.gap == 0


def test_kernels_are_fused_and_say_where_they_come_from(plain: planner.Plan) -> None:
    fused = [op for op in plain.graph.ops if op.target.startswith("fused(")]
    assert any("tanh" in op.target and "mul" in op.target for op in fused)
    assert {op.module for op in plain.graph.ops} >= {"blocks.0.up", "blocks.1.down"}
    assert any(re.search(r"tests/compiled\.py:\d+$", op.source) for op in plain.graph.ops)


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize(
    "share",
    [0.8, pytest.param(0.6, marks=pytest.mark.slow), pytest.param(0.0, marks=pytest.mark.slow)],
)
def test_the_measured_peak_is_within_the_budget(plain: planner.Plan, share: float) -> None:
    model, x = net()
    wanted = budget(plain, share)
    try:
        plan = planner.fit(model, wanted, inputs=x, engine="inductor", **QUICK)
    except planner.InfeasibleBudget as error:
        assert share == 0
        wanted = error.least_bytes
        plan = planner.fit(model, wanted, inputs=x, engine="inductor", **QUICK)
    assert plan.recomputed
    peak = measured_bytes(plan.apply(model), x)
    assert peak <= plan.peak_bytes <= wanted
    moving = peak - static_bytes(model, x)
    assert plan.peak_bytes - static_bytes(model, x) <= 1.05 * moving


def test_gradients_are_inductors_own_in_every_bit(tight: planner.Plan) -> None:
    model, x = net()
    torch._dynamo.reset()
    expected = gradients(without_plan(model, None), x)
    found = gradients(tight.apply(model), x)
    assert tight.recomputed
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    with torch.no_grad():
        assert torch.isfinite(tight.apply(model)(x))


@pytest.mark.usefixtures("stubbed")
def test_a_plan_is_saved_loaded_and_applied(tight: planner.Plan, tmp_path: Path) -> None:
    tight.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert again == tight
    model, x = net()
    assert measured_bytes(again.apply(model), x) <= tight.budget_bytes


@pytest.mark.usefixtures("stubbed")
def test_a_smaller_call_runs_and_a_larger_one_is_a_mismatch(tight: planner.Plan) -> None:
    model, x = net()
    planned = tight.apply(model)
    assert measured_bytes(planned, x[:1024]) <= tight.budget_bytes
    with pytest.raises(planner.PlanMismatch, match=r"is float32\[4096, 32\].*would hold"):
        planned(torch.cat([x, x]))
    plainly = tight.apply(model, on_mismatch="plain")
    assert torch.isfinite(step(plainly, torch.cat([x, x])))


class Sized(Net):
    """Computes something else where there are few rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if len(x) > 64 else x.tanh())


@pytest.mark.usefixtures("stubbed")
def test_a_smaller_call_that_compiles_otherwise_is_planned_anew() -> None:
    torch.manual_seed(0)
    model, x = Sized(depth=1), torch.randn(256, 32)
    plan = planner.fit(model, "1MB", inputs=x, engine="inductor", **QUICK)
    planned = plan.apply(model)
    assert measured_bytes(planned, x[:64]) <= plan.budget_bytes
    alone = replace(plan, signature={**plan.signature, "compiled": {"nodes": "others"}})
    with pytest.raises(planner.PlanMismatch, match=r"not the planned one: .* compiles to another"):
        alone.apply(model)(x)


@pytest.mark.usefixtures("stubbed")
def test_another_mode_is_planned_anew(tight: planner.Plan) -> None:
    model, x = net()
    planned = tight.apply(model, on_mismatch="replan")
    planned.eval()
    assert measured_bytes(planned, x) <= tight.budget_bytes
    with pytest.raises(planner.PlanMismatch, match="train/eval mode"):
        tight.apply(model)


def test_a_loss_with_targets(plain: planner.Plan) -> None:
    model, targets = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.ones(32, 4)
    x = torch.randn(32, 8)
    plan = planner.fit(
        model,
        "1GB",
        inputs=x,
        targets=targets,
        loss=nn.functional.mse_loss,
        engine="inductor",
        **QUICK,
    )
    planned = plan.apply(model)
    with stubs():
        planned(x, targets=targets).backward()
        with pytest.raises(planner.PlanMismatch, match="takes targets and none came"):
            planned(x)
    assert planned.eval()(x).shape == (32, 4)


def test_what_cannot_be_planned_is_refused() -> None:
    model, x = net()
    said = {"inputs": x, "engine": "inductor", **QUICK}
    with torch.device("meta"):
        hollow = Net()
    with pytest.raises(planner.CaptureError, match="on meta"):
        planner.fit(hollow, "1GB", **said)
    with pytest.raises(planner.BadRequest, match="each size by itself"):
        planner.fit(model, "1GB", dynamic={"x": 0}, **said)
    with (
        torch._inductor.config.patch(fallback_random=True),
        pytest.raises(planner.CaptureError, match="fallback_random"),
    ):
        planner.fit(model, "1GB", **said)
    with pytest.raises(planner.CaptureError, match=r"breaks at .*compiled\.py:\d+ \(torch\._dyn"):
        planner.fit(Broken(), "1GB", **said)
    with pytest.raises(planner.CaptureError, match="requires grad"):
        planner.fit(model.requires_grad_(False), "1GB", **said)


def test_a_plan_of_another_model_is_refused(tight: planner.Plan) -> None:
    with pytest.raises(planner.PlanMismatch, match="not for this model"):
        tight.apply(nn.Linear(2, 2))
    model, x = net()
    model.gain = 3.0
    with stubs():
        step(tight.apply(model), x)  # a constant of the step, which has the same kernels


def test_kernels_beyond_the_budget_are_not_compiled(tight: planner.Plan) -> None:
    model, x = net()
    torch._dynamo.reset()
    short = replace(tight, budget_bytes=tight.peak_bytes - (tight.peak_bytes // 4))
    with pytest.raises(planner.PlanMismatch, match="the step would hold"):
        short.apply(model)(x)


def test_a_plan_for_a_card_says_that_it_is_unchecked(plain: planner.Plan) -> None:
    model, x = net()
    plan = planner.fit(model, "8GB", inputs=x, device="a100-40gb", engine="inductor", **QUICK)
    assert any("unchecked" in remark for remark in plan.remarks)
    assert not any("unchecked" in remark for remark in plain.remarks)


class Convolving(nn.Module):
    """Two convolutions with batch norm: Inductor lays their images out channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.last = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()).relu().square().mean()


@pytest.mark.usefixtures("stubbed")
def test_convolutions_are_predicted_as_inductor_lays_them_out() -> None:
    torch.manual_seed(0)
    model, x = Convolving(), torch.randn(4, 4, 32, 32)
    plan = planner.fit(model, "1GB", inputs=x, engine="inductor", **QUICK)
    peak, fixed = measured_bytes(plan.apply(model), x), static_bytes(model, x)
    assert peak <= plan.peak_bytes
    assert plan.peak_bytes - fixed <= 1.05 * (peak - fixed)


@pytest.mark.slow
@pytest.mark.usefixtures("stubbed")
def test_a_unet_is_predicted_at_its_least_budget() -> None:
    model, inputs = small_unet()
    said = {"inputs": inputs, "engine": "inductor", **QUICK}
    with pytest.raises(planner.InfeasibleBudget) as failed:
        planner.fit(model, static_bytes(model, *inputs.values()) + 2**18, **said)
    plan = planner.fit(model, failed.value.least_bytes, **said)
    assert plan.recomputed
    calls = list(inputs.values())
    peak, fixed = measured_bytes(plan.apply(model), *calls), static_bytes(model, *calls)
    assert peak <= plan.peak_bytes
    assert plan.peak_bytes - fixed <= 1.05 * (peak - fixed)


@pytest.mark.slow
def test_more_sizes_than_dynamo_compiles_by_default() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
    said: dict[str, Any] = {"loss": torch.mean, "optimizer": None, "engine": "inductor"}
    plan = planner.fit(model, "1MB", inputs=torch.randn(96, 32), **said)
    planned = plan.apply(model)
    for rows in range(96, 84, -1):
        planned(torch.randn(rows, 32)).backward()
