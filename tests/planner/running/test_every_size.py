"""Thirty sizes through one plan, on models as libraries have them: written once, same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from benchmarks.sizes import CASES, row_of, step
from tests.by_default import slow_but

SLOW = {"t5", "cnn", "lstm"}
"""The others meet the same code in CI."""


@pytest.mark.parametrize("name", slow_but(CASES.keys() - SLOW, CASES))
def test_thirty_sizes_through_one_plan(name: str) -> None:
    torch.set_num_threads(1)
    row = row_of(name, scale=1, rounds=1)
    assert row.traced == 2, "once at a size of its own, once for all"
    assert row.equal
    assert row.within_budget
    assert row.grown_bytes <= 0


def _few_rows(x: Tensor) -> Tensor:
    return x.cumsum(0) if len(x) > 4 else x.cumsum(1)


def _row_by_row(x: Tensor) -> Tensor:
    return torch.stack([row * i for i, row in enumerate(x)])


def _asked_of_sizes(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[0])
    return x * 2 if (places > 5).any() else x * 3


def _weight_of_rows(x: Tensor) -> Tensor:
    return x @ x.t() / 8 + torch.ones(8, 8)[: len(x), : len(x)]


TRICKY: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch on few rows": _few_rows,
    "a loop over rows": _row_by_row,
    "a question of an arange": _asked_of_sizes,
    "a product of rows": _weight_of_rows,
    "a power of a size": lambda x: x * x.shape[0] ** -0.5,
    "a float of a size": lambda x: x * (0.1 * x.shape[0] * 0.7),
    "a tensor of a size": lambda x: x / torch.tensor(float(x.shape[0])),
    "a full of a size": lambda x: x - torch.full((x.shape[0], 1), x.shape[0]),
    "halves": lambda x: torch.cat([x[len(x) // 2 :], x[: len(x) // 2]]),
    "chunks": lambda x: torch.cat([c.flip(0) for c in x.split(3)]),
    "noise": lambda x: x + torch.rand(x.shape),
    "dropout": lambda x: nn.functional.dropout(x.t(), 0.3).t(),
    "channels last": lambda x: (
        x[:, None, None].to(memory_format=torch.channels_last).expand(-1, 3, -1, -1).contiguous()
    ),
    "a variance": lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1),
    "a quantile": lambda x: x.sort(0).values[len(x) // 2] + x,
    "interpolation": lambda x: nn.functional.interpolate(x[None, None], scale_factor=1.5),
    "an identity": lambda x: x @ torch.eye(16) + torch.linspace(0, 1, len(x))[:, None],
}


class Tricky(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(4, 16), [between]

    def forward(self, x: Tensor) -> Tensor:
        return self.between[0](self.first(x)).square().mean()


@pytest.mark.parametrize("name", slow_but(list(TRICKY)[::2], TRICKY))
def test_whatever_depends_on_a_size_does_so(name: str) -> None:
    torch.manual_seed(0)
    model = Tricky(TRICKY[name])
    largest = {"x": torch.randn(8, 4)}
    said: Any = {"inputs": largest, "optimizer": None, "method": "recompute_all"}
    planned = planner.fit(model, "1GB", **said).apply(model)
    for rows in (8, 7, 6, 5, 3):
        call = {"x": largest["x"][:rows]}
        ours, theirs = step(planned, call, []), step(model, call, [])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), rows  # type: ignore[arg-type]
