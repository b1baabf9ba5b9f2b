"""What two captures have in common if they are one computation."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.same_step import computation
from planner.graphs.capture.training_step import capture_joint


class Scaled(nn.Module):
    """Reads its number; what it is scaled by is a constant of the graph."""

    def __init__(self, number: int, *, by: float = 2.0, constant: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.number, self.by, self.constant = number, by, constant

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.number < 0 else self.linear(x)
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0]) if self.constant else x.mul(self.by)


def told(unit: nn.Module, rows: int = 3) -> Hashable | None:
    call = arguments_of(torch.zeros(rows, 4, requires_grad=True))
    return computation(capture_joint(unit, call, device="cpu", dynamic="off"))


def test_what_is_read_does_not_count_and_what_is_computed_does() -> None:
    usual = told(Scaled(0))
    assert usual is not None
    assert told(Scaled(1)) == usual
    assert told(Scaled(-1)) != usual
    assert told(Scaled(0, by=3.0)) != usual
    assert told(Scaled(0), rows=5) != usual
    frozen = Scaled(0)
    frozen.linear.bias.requires_grad_(False)
    assert told(frozen) != usual


def test_tensors_of_the_graphs_own_are_not_compared() -> None:
    assert told(Scaled(0, constant=True)) is None
