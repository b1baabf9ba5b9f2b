"""Verification: really runs both, and says what it found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.verification.difference import Difference
from planner.verification.training_run import Measurement
from planner.verification.verification import Verification, VerificationFailed
from planner.verification.verify import Run, conclude, verify

GIGA = 10**9


class Deep(nn.Module):
    """Layers with dropout and batch norm, so that randomness and buffers are compared as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.GELU(), nn.Dropout(0.2))
            for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def deep() -> tuple[nn.Module, Tensor]:
    """Build a model and its input, the same each time."""
    torch.manual_seed(0)
    return Deep().train(), torch.randn(2048, 128)


def squared(output: Tensor, target: Tensor) -> Tensor:
    """Return a loss that is no part of the model."""
    return nn.functional.mse_loss(output, target)


@pytest.fixture(scope="module")
def found() -> Verification:
    model, x = deep()
    target = torch.zeros_like(x)
    arguments = {"inputs": x, "loss": squared, "targets": target}
    most = planner.fit(model, "1GB", method="plain", **arguments).peak_bytes
    plan = planner.fit(model, most * 2 // 3, **arguments)
    assert plan.recomputed
    return verify(deep, plan, loss=squared, targets=target, steps=2)


def test_a_plan_keeps_its_promises(found: Verification) -> None:
    assert found.fits
    assert found.identical, str(found)
    assert abs(found.prediction_error) <= 0.02
    assert found.plain.peak_bytes > found.budget_bytes
    assert found.planned.losses == found.plain.losses
    assert len(set(found.plain.losses)) > 1


def test_it_prints_and_dumps_the_answer(found: Verification) -> None:
    assert str(found).startswith("fits: measured peak")
    assert "bit-identical" in str(found)
    dumped = found.to_json()
    assert dumped["fits"] is True
    assert dumped["planned"]["peak_bytes"] == found.planned.peak_bytes


def test_a_broken_promise_is_said_first() -> None:
    run = Measurement(2 * GIGA, GIGA, 0, 1.5, (1.5,), (0.5,))
    same = Difference()
    bad = Verification(
        plain=replace(run, seconds=1.0),
        planned=run,
        predicted_bytes=GIGA,
        budget_bytes=GIGA,
        loss=same,
        gradients=Difference(0.25, 0.5, "w"),
        parameters=same,
        buffers=same,
    )
    text = str(bad)
    assert text.startswith("DOES NOT FIT: measured peak 2.00 GB")
    assert "NOT bit-identical" in text
    assert "-50.00% of measured" in text
    assert "+50.0%" in text
    assert "gradients differ by 0.25 (0.5 relative), most in w" in text
    assert not bad.fits
    assert not bad.identical


def refuses(x: Tensor) -> Tensor:
    raise ArithmeticError("no loss today")


def test_a_run_that_fails_says_which_and_why() -> None:
    model, x = deep()
    plan = planner.fit(model, "1GB", inputs=x, loss=squared, targets=x)
    with pytest.raises(
        VerificationFailed, match=r"plain training run failed with Arithmetic.*today"
    ):
        verify(model, plan, x, loss=refuses)


def test_what_a_device_keeps_for_itself_is_in_no_measurement() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(8, 8), torch.empty(4, 8)
    plan = planner.fit(model, "2GB", inputs=x, device="A100-40GB")
    measured = Measurement(plan.peak_bytes - 2**30, GIGA, 0, 1.5, (1.5,), (0.5,))
    nothing: dict[str, dict[str, torch.Tensor]] = {
        "gradients": {}, "parameters": {}, "buffers": {},
    }  # fmt: skip
    found = conclude(plan, Run(measured, nothing), Run(measured, nothing))
    assert found.prediction_error == 0
    assert found.budget_bytes == plan.budget_bytes - 2**30
    assert found.fits
