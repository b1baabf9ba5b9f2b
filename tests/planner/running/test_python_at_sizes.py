"""What Python holds changes between calls of different sizes: one plan, the bits of eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner import PlanMismatch


class Annealed(nn.Module):
    """Reads two floats, leaves a tensor, a size and a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 1)
        self.alpha, self.config = 1.0, {"weight": 0.5}
        self.feature: Tensor | None = None
        self.rows: int | None = None
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).relu() * self.alpha
        self.feature = h = h * self.config["weight"]
        self.rows, self.shape = x.shape[0], x.shape
        mean: Tensor = self.outer(h).mean()
        return mean


def left(model: Any, called: nn.Module, x: Tensor) -> list[Any]:
    model.zero_grad(set_to_none=True)
    loss = called(x)
    loss.backward()
    made = [loss, model.feature, *(p.grad for p in model.parameters())]
    return [model.rows, model.shape, *(t.detach().clone() for t in made)]


def assert_same(model: nn.Module, planned: nn.Module, x: Tensor) -> None:
    for a, b in zip(left(model, planned, x), left(model, model, x), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b and type(a) is type(b)


def test_floats_change_while_sizes_do(traced: list[bool]) -> None:
    model, x = Annealed(), torch.randn(10, 8)
    planned = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for epoch, sizes in enumerate([(10, 9, 8, 7), (10, 9, 6, 5), (4, 10, 3), (9, 2, 10)]):
        model.alpha, model.config["weight"] = 0.9**epoch, 0.1 * epoch
        for rows in sizes:
            assert_same(model, planned, x[:rows])
    assert len(traced) <= 9, traced


def test_what_is_left_at_a_size_is_left_again_though_it_was_there_when_traced() -> None:
    model, x = Annealed(), torch.randn(10, 8)
    model(x)  # rows and shape are those of the largest call when it is traced
    planned = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for rows in (10, 9, 10, 8, 7, 10, 7):
        assert_same(model, planned, x[:rows])


def test_a_submodule_exchanged_is_noticed_at_a_size_that_comes_later() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(10, 8)
    planned = planner.fit(model, "1GB", inputs=x, optimizer=None, loss=torch.mean).apply(model)
    for rows in (10, 9, 8):
        planned(x[:rows]).backward()
    model[1] = nn.ReLU()
    for rows in (10, 9, 7):
        with pytest.raises(PlanMismatch):
            planned(x[:rows])


def test_what_failed_in_other_circumstances_is_tried_again() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 1)), torch.randn(10, 8)
    planned = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for rows in (9, 8, 7):
        with pytest.raises(PlanMismatch, match="mode"):
            planned.eval()(x[:rows])
        planned.train()(x[:rows]).sum().backward()
