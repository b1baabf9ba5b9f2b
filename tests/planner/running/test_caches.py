"""Caches that a model's forward fills and reorders: of masks, of angles, by size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner


class Masked(nn.Module):
    """Multiplies by a mask that it keeps by the number of rows."""

    def __init__(self, cache: dict[int, Tensor]) -> None:
        super().__init__()
        self.layer, self.cache = nn.Linear(8, 8), cache

    def mask(self, rows: int) -> Tensor:
        if rows not in self.cache:
            self.cache[rows] = torch.ones(rows, 8).tril()
        return self.cache[rows]

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = (self.layer(x) * self.mask(x.shape[0])).square().mean()
        return made


class Lately(Masked):
    """Knows what was asked for last."""

    def mask(self, rows: int) -> Tensor:
        found = super().mask(rows)
        assert isinstance(self.cache, OrderedDict)
        self.cache.move_to_end(rows)
        return found


class InTurn(Masked):
    """Asks for what was asked for longest ago."""

    def mask(self, rows: int) -> Tensor:
        last, found = self.cache.popitem()
        self.cache = {last: found, **self.cache}
        return next(iter(self.cache.values()))


def assert_trains_alike(plain: Any, called: Any, rows: list[int]) -> None:
    for n in rows:
        x = torch.randn(n, 8)
        found = []
        for model in (plain, called):
            model.zero_grad()
            model(x).backward()
            found.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        for key in called.cache:
            assert torch.equal(called.cache[key], plain.cache[key])


@pytest.mark.parametrize("cls", [Masked, Lately])
@pytest.mark.parametrize("warm", [False, True])
def test_a_cache_that_is_filled_at_each_new_size(cls: type[Masked], warm: bool) -> None:
    plain = cls(OrderedDict({5: torch.ones(5, 8).tril()}))
    if warm:
        plain(torch.randn(8, 8))
    model = copy.deepcopy(plain)
    called = planner.fit(model, "1GB", inputs=torch.randn(8, 8), optimizer=None).apply(model)
    assert_trains_alike(plain, called, [8, 8, 6, 8, 6, 5, 6, 8])


def test_a_cache_whose_order_is_read_is_refused() -> None:
    model = InTurn({1: torch.ones(8, 8), 2: torch.zeros(8, 8)})
    with pytest.raises(planner.CaptureError, match=r"forward pass changes .*'cache"):
        planner.fit(model, "1GB", inputs=torch.randn(8, 8))
    assert list(model.cache) == [1, 2]


def test_a_tensor_that_is_renewed_is_never_taken_for_one_that_is_gone() -> None:
    model = Masked({8: torch.ones(8, 8)})
    called = planner.fit(model, "1GB", inputs=torch.randn(8, 8), optimizer=None).apply(model)
    x = torch.randn(8, 8)
    for value in (1, 1, 1, 2, 3, 1, 4, 5):
        model.cache.clear()  # what was there is gone, and its place in memory free
        model.cache[8] = torch.full((8, 8), float(value))
        assert torch.equal(called(x), model(x))
