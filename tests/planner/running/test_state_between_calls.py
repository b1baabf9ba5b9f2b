"""What forward changes of Python's state where no attribute is set: refused, and put back."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planner
from planner import CaptureError


class Scaled(nn.Module):
    """One layer, whose output is multiplied by a number that Python finds in ``state``."""

    def __init__(self, state: Any, number: Callable[[Any], float]) -> None:
        super().__init__()
        self.layer, self.state, self.number = nn.Linear(4, 4), state, number

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x).square().mean() * self.number(self.state)
        return made


def _first_to_the_end(state: Any) -> float:
    key = next(iter(state))
    state[key] = state.pop(key)
    return float(state[key])


def _moved_to_the_end(state: OrderedDict[str, float]) -> float:
    state.move_to_end(next(iter(state)))
    return next(iter(state.values()))


def _key_of_another_type(state: dict[Any, int]) -> float:
    was = next(iter(state))
    state.clear()
    state[True] = 1
    return 2.0 if was is True else 1.0


CHANGED: dict[str, tuple[Any, Callable[[Any], float], str]] = {
    "a dict": ({"a": 1.0, "b": 2.0}, _first_to_the_end, "order .* of attribute 'state'"),
    "an ordered dict": (OrderedDict(a=1.0, b=2.0), _moved_to_the_end, "the order or the type"),
    "a key": ({1: 1}, _key_of_another_type, "the order or the type of the keys"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_keys_that_change_places_are_refused_and_put_back(kind: str) -> None:
    state, number, words = CHANGED[kind]
    model, before = Scaled(state, number), [(type(k), k) for k in state]
    with pytest.raises(CaptureError, match=words):
        planner.fit(model, "1GB", inputs=torch.randn(2, 4))
    assert [(type(k), k) for k in state] == before


DRAWN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], float], str]] = {
    "in a tuple": (lambda g: (g,), lambda s: float(s[0].random()), r"draws from .*state\[0\]"),
    "a method": (lambda g: g.random, lambda s: float(s()), "draws from attribute 'state'"),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_random_generator_is_found_wherever_it_is(kind: str) -> None:
    generator = np.random.default_rng(0)
    hold, number, words = DRAWN[kind]
    before = repr(generator.bit_generator.state)
    with pytest.raises(CaptureError, match=words):
        planner.fit(Scaled(hold(generator), number), "1GB", inputs=torch.randn(2, 4))
    assert repr(generator.bit_generator.state) == before


def test_an_iterator_in_a_collection_is_refused() -> None:
    model = Scaled({"next": (itertools.count(1),)}, lambda s: float(next(s["next"][0])))
    with pytest.raises(CaptureError, match=r"an iterator, attribute .*\['next'\]\[0\]"):
        planner.fit(model, "1GB", inputs=torch.randn(2, 4))
