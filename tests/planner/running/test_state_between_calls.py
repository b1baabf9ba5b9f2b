"""What forward changes of Python's state where no attribute is set: refused, and put back."""

from __future__ import annotations

import itertools
import math
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planner
from planner import CaptureError
from tests.planner.running.scaled import Scaled


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


class Slotted:
    """Counts, and has no dict."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Counted:
    """Counts in its class."""

    count = 0


def _increased(state: Any) -> float:
    state.count += 1
    return float(state.count)


def _increased_inside(state: Any) -> float:
    state[0] += 1
    return float(state[0])


COUNTS: dict[str, tuple[Any, Callable[[Any], float], Callable[[Any], Any], str]] = {
    "a slot": (Slotted(), _increased, lambda s: s.count, "reads attribute 'state.count'"),
    "a class": (Counted, _increased, lambda s: s.count, "changes class Counted.count from 0 to 1"),
    "the class of an object": (
        Counted(),
        lambda s: _increased(type(s)),
        lambda s: s.count,
        "changes class Counted.count from 0 to 1",
    ),
    "an array of NumPy": (np.zeros(3), _increased_inside, lambda s: s[0], "writes into an array"),
    "an array": (array("d", [0.0]), _increased_inside, lambda s: s[0], "writes into an array"),
    "bytes": (bytearray(2), _increased_inside, lambda s: s[0], "writes into an array"),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_is_refused_wherever_it_is_kept_and_put_back(kind: str) -> None:
    state, number, count, words = COUNTS[kind]
    with pytest.raises(CaptureError, match=words):
        planner.fit(Scaled(state, number), "1GB", inputs=torch.randn(2, 4))
    assert count(state) == 0


@pytest.mark.parametrize(
    ("state", "written"),
    [
        (np.ones(2000), 2.0),  # which NumPy shows in part
        (np.ones(1), 1.0 + 2**-40),  # to eight digits
        (array("d", [1.0] * 10), 3.0),
        (bytearray([1] * 10), 3),
    ],
)
def test_an_array_that_the_loop_writes_into_is_followed(state: Any, written: float) -> None:
    torch.manual_seed(0)
    middle = len(state) // 2
    model, x = Scaled(state, lambda s: float(s[middle])).double(), torch.randn(2, 4).double()
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    assert torch.equal(called(x), model(x))
    state[middle] = written
    assert torch.equal(called(x), model(x))


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


def test_other_data_in_a_parameter_is_refused() -> None:
    class Clipped(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.weight.data = self.weight.data.clamp(-0.1, 0.1)
            return super().forward(input).square().mean()

    model = Clipped(4, 4)
    before = model.weight.detach().clone()
    with pytest.raises(CaptureError, match=r"x\.data = \.\.\."):
        planner.fit(model, "1GB", inputs=torch.randn(2, 4))
    assert torch.equal(model.weight, before)
    model.weight.data = model.weight.data.clamp(-0.1, 0.1)  # outside it may
    assert model.weight.abs().max() <= 0.1


@pytest.mark.parametrize("kept", [lambda x: x, lambda x: [x], lambda x: (x,)])
def test_the_sign_of_a_zero_that_the_loop_writes_is_followed(kept: Callable[[float], Any]) -> None:
    def number(state: Any) -> float:
        return math.atan2(state if isinstance(state, float) else state[0], -1.0)

    model, x = Scaled(kept(0.0), number), torch.ones(2, 4)
    planned = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for zero in (0.0, -0.0, 0.0):
        model.state = kept(zero)
        loss = planned(x)
        assert torch.equal(loss, model(x))
        assert (loss.item() < 0) == (str(zero) == "-0.0")
        loss.backward()
