"""New values of buffers are written where the old ones lie, wherever nobody else reads either."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner


class Step(nn.Module):
    """A convolution, batch norm and what a case does with them."""

    def __init__(self, case: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("rate", torch.ones(3))
        self.register_buffer("rows", torch.zeros(2, 3))
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.case(self, self.first(x))
        return made


def once(model: Any, x: Tensor) -> Any:
    return model.norm(x).square().mean()


def averaged(model: Any, x: Tensor) -> Any:
    model.average.lerp_(x.detach().mean((0, 2, 3)), 0.1)
    return x.square().mean()


def averaged_in_two(model: Any, x: Tensor) -> Any:
    model.average.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
    return x.square().mean()


def joined(model: Any, x: Tensor) -> Any:
    """What is added can be written over what it is made of, which may not run again either."""
    model.average.add_(x.detach().mean((0, 2, 3)) * model.rate)
    model.rate.mul_(0.9)
    return x.square().mean()


def twice(model: Any, x: Tensor) -> Any:
    return model.norm(model.norm(x).relu()).square().mean()


def read_before(model: Any, x: Tensor) -> Any:
    mean = model.norm.running_mean.clone()
    return (model.norm(x) * mean.sum()).square().mean()


def read_after(model: Any, x: Tensor) -> Any:
    return (model.norm(x) * model.norm.running_var.sum()).square().mean()


def a_row(model: Any, x: Tensor) -> Any:
    model.rows[0].copy_(x.detach().mean((0, 2, 3)))
    return x.square().mean()


COUNT, STATISTICS = "norm.num_batches_tracked", ["norm.running_mean", "norm.running_var"]


@pytest.mark.parametrize(
    ("case", "copied"),
    [
        (once, []),
        (averaged, []),
        (averaged_in_two, ["average"]),
        (joined, ["rate"]),
        (twice, [COUNT, *STATISTICS]),
        (read_before, STATISTICS),
        (read_after, STATISTICS),
        (a_row, ["rows"]),
    ],
)
@pytest.mark.parametrize("tight", [False, True])
def test_buffers_are_as_in_eager_mode(
    case: Callable[[Any, Tensor], Any], copied: list[str], tight: bool
) -> None:
    model, x = Step(case), torch.randn(8, 3, 16, 16)
    other = copy.deepcopy(model)
    plan = planner.fit(model, "1GB", inputs=x, progress="off")
    if tight:
        plan = planner.fit(model, _least(model, x), inputs=x, progress="off")
    updates = [op.name for op in plan.graph.ops if op.name.startswith("update.")]
    assert updates == [f"update.{name}" for name in copied]
    planned = plan.apply(model)
    for _ in range(3):
        planned(x).backward()
        other(x).backward()
    expected = other.state_dict()
    assert all(torch.equal(now, expected[name]) for name, now in model.state_dict().items())
    gradients = zip(model.parameters(), other.parameters(), strict=True)
    assert all(a.grad is b.grad or torch.equal(a.grad, b.grad) for a, b in gradients)  # type: ignore[arg-type]


def _least(model: nn.Module, x: Tensor) -> int:
    with pytest.raises(planner.InfeasibleBudget) as caught:
        planner.fit(model, 1, inputs=x, progress="off")
    return caught.value.least_bytes
