"""A trial measures what arithmetic says, in a process of its own, and fails with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.verification.difference import compare_tensors
from planner.verification.training_run import Trial, scalar_of
from planner.verification.verification import VerificationFailed
from planner.verification.verify import Run, run_alone

WIDTH, BATCH = 256, 4096


class Square(nn.Module):
    """One parameter-free layer whose training step is known to the byte."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).square().sum()


class Dying(nn.Module):
    """End the process, as the system does when memory runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        os._exit(1)


def square() -> tuple[nn.Module, Tensor]:
    return Square(), torch.ones(BATCH, WIDTH)


def dying() -> tuple[nn.Module, Tensor]:
    return Dying(), torch.ones(1)


def small_steps(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=2.0**-20)


def trial(model: nn.Module | Callable[[], tuple[nn.Module, Any]] = square) -> Trial:
    return Trial(
        model=model,
        inputs=None,
        loss=None,
        targets=None,
        optimizer=small_steps,
        plan=None,
        steps=2,
        seed=0,
        threads=1,
    )


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """Run the same trial twice."""
    return run_alone(trial()), run_alone(trial())


def test_peak_is_the_sum_of_what_is_held(runs: tuple[Run, Run]) -> None:
    found = runs[0].measured
    matrix, scale = 4 * WIDTH * BATCH, 4 * WIDTH
    assert found.static_bytes == matrix + scale
    # x * scale, its square that nobody needs again; then its gradient by way of two more
    assert found.peak_bytes - found.static_bytes >= 2 * matrix
    assert found.peak_bytes - found.static_bytes <= 4 * matrix + 64 * scale
    assert found.high_water_bytes == pytest.approx(found.peak_bytes, rel=0.1)
    assert found.losses[0] == WIDTH * BATCH
    assert len(found.step_seconds) == 2
    assert found.seconds > 0


def test_results_are_gradients_of_the_first_step_and_the_last_state(runs: tuple[Run, Run]) -> None:
    run = runs[0]
    assert torch.equal(run.tensors["gradients"]["scale"], torch.full((WIDTH,), 2.0 * BATCH))
    weight = torch.ones(WIDTH)
    for _ in run.measured.losses:
        weight -= 2.0**-20 * 2 * BATCH * weight
    assert torch.allclose(run.tensors["parameters"]["scale"], weight)


def test_the_same_trial_gives_the_same_results(runs: tuple[Run, Run]) -> None:
    first, second = runs
    assert first.measured.losses == second.measured.losses
    assert first.measured.peak_bytes == second.measured.peak_bytes
    for kind, tensors in first.tensors.items():
        assert compare_tensors(tensors, second.tensors[kind]).identical


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(VerificationFailed, match="ran out of memory"):
        run_alone(trial(dying))


def test_a_model_that_cannot_travel_is_reported() -> None:
    class Local(Square):
        pass

    task = replace(trial(Local()), inputs=torch.ones(1, WIDTH))
    with pytest.raises(VerificationFailed, match=r"importable\s+function"):
        run_alone(task)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ({"loss": torch.tensor(3.0), "logits": torch.ones(2)}, 3.0),
        ((torch.tensor(3.0), torch.ones(2)), 3.0),
        (torch.tensor([1.0, 2.0], requires_grad=True), 3.0),
        ((torch.ones(2, requires_grad=True), torch.ones(9)), 2.0),
    ],
)
def test_scalar_of_finds_the_loss(output: Any, value: float) -> None:
    assert scalar_of(output).item() == value
