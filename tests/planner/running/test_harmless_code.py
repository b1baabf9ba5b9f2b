"""Ordinary code that a plan need not follow: how objects are made and compared, names of locals."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.running.variants import Variants

MADE = 0


class Config:
    """A class of one's own, as most models hold one."""

    ids: ClassVar[Any] = itertools.count()

    def __init__(self, scale: float) -> None:
        if type(scale) is Tensor:
            scale = scale.item()
        self.id, self.scale = next(Config.ids), scale

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Counter:
    """Counts for somebody else."""

    total = 0


class Net(nn.Module):
    """Scales by its config and by a factor that a loop may change."""

    def __init__(self) -> None:
        global MADE  # noqa: PLW0603 (as models count themselves)
        super().__init__()
        MADE += 1
        self.layer, self.config, self.factor = nn.Linear(8, 8), Config(2.0), 1.0
        self.counter = Counter()
        self.near = weakref.proxy(self.config)
        self.shift = nn.Buffer(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        total = self.layer(x + self.shift).square().mean()
        return total * self.config.scale * self.factor


def make_another(model: nn.Module) -> None:
    global MADE  # noqa: PLW0603
    MADE += 1


def count(model: nn.Module) -> None:
    Counter.total += 1


def change_factor(model: Any) -> None:
    model.factor += 0.5


@pytest.mark.parametrize(("between", "traced"), [(make_another, 0), (count, 0), (change_factor, 1)])
def test_what_forward_does_not_read_is_not_traced_anew(
    between: Callable[[nn.Module], None], traced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Net(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    plain.near = weakref.proxy(plain.config)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    again: list[Any] = []
    own = Variants._traced
    monkeypatch.setattr(Variants, "_traced", lambda s, m, p: (again.append(p), own(s, m, p))[1])
    for _ in range(4):
        for each in (plain, called):
            each.zero_grad()
            each(x).backward()
        assert torch.equal(plain.layer.weight.grad, called.layer.weight.grad)  # type: ignore[arg-type]
        between(called)
        if between is change_factor:
            between(plain)
    assert len(again) == traced


def test_a_buffer_may_be_an_input() -> None:
    layer, x = nn.Linear(8, 8), nn.Buffer(torch.randn(4, 8))
    plan = planner.fit(layer, "1GB", inputs=x, optimizer=None)
    assert torch.equal(plan.apply(layer)(x), layer(x))


def test_a_parameter_that_takes_the_place_of_another_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.one.weight = self.other.weight
            made: Tensor = self.one(self.other(x)).sum()
            return made

    with pytest.raises(planner.CaptureError, match="another parameter in the place of 'weight'"):
        planner.fit(Tied(), "1GB", inputs=torch.randn(2, 8), optimizer=None)
