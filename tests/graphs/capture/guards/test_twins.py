"""Two layers that are alike but for one thing: whether the trace of one is that of the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.guards.twins import is_twin, make_of, same_data
from planner.graphs.capture.trace import trace

BY_LAYER: dict[Any, float] = {}


class Layer(nn.Module):
    """Reads a good deal of Python's state; its number only where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.1)
        self.offset = nn.Buffer(torch.ones(4))
        self.number, self.scale = 0, 1.0
        self.said = SimpleNamespace(power=2)
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.constant = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(self.linear(x) + self.offset) ** self.said.power
        return self.dropout(made * self.scale)


class Numbered(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.number % 2 else x * self.linear.bias


class Constant(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.constant


class LookedUp(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * BY_LAYER.get(self, 1.0)


def twins(cls: type[Layer], change: Callable[[Any], Any]) -> bool:
    first, second = cls(), cls()
    reads = trace(first, arguments_of(torch.zeros(2, 4))).reads
    make = make_of(first)
    change(second)
    return is_twin(make, reads, second)


def setting(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda layer: setattr(layer, name, value)


SAME: dict[str, tuple[type[Layer], Callable[[Any], Any]]] = {
    "nothing": (Layer, lambda layer: None),
    "a number that nobody reads": (Layer, setting("number", 7)),
    "what is in a parameter": (Layer, lambda layer: layer.linear.weight.data.zero_()),
    "what is in a buffer": (Layer, lambda layer: layer.offset.zero_()),
    "a further attribute": (Layer, setting("name", "second")),
}

OTHER: dict[str, tuple[type[Layer], Callable[[Any], Any]]] = {
    "a number that is read": (Numbered, setting("number", 1)),
    "a rate of dropout": (Layer, lambda layer: setattr(layer.dropout, "p", 0.2)),
    "a float": (Layer, setting("scale", 2.0)),
    "an object's attribute": (Layer, lambda layer: setattr(layer.said, "power", 3)),
    "a function": (Layer, setting("act", torch.tanh)),
    "what cannot be told": (Layer, setting("act", functools.partial(F.leaky_relu))),
    "a mode": (Layer, lambda layer: layer.dropout.eval()),
    "a frozen parameter": (Layer, lambda layer: layer.linear.weight.requires_grad_(False)),
    "a shape": (Layer, lambda layer: setattr(layer, "linear", nn.Linear(4, 4, bias=False))),
    "a layout": (Layer, lambda layer: setattr(layer.linear.weight, "data", torch.ones(4, 4).T)),
    "a dtype": (Layer, lambda layer: layer.linear.half()),
    "a hook": (Layer, lambda layer: layer.linear.register_forward_hook(lambda *_: None)),
    "a forward of its own": (Layer, lambda layer: setattr(layer.linear, "forward", F.relu)),
    "a class": (Layer, setting("dropout", nn.AlphaDropout(0.1))),
    "a tie": (Layer, lambda layer: setattr(layer.linear, "bias", layer.linear.weight)),
    "a constant of its own": (Constant, lambda layer: None),
}


@pytest.mark.parametrize("case", SAME)
def test_what_the_trace_does_not_depend_on_is_no_matter(case: str) -> None:
    assert twins(*SAME[case])


@pytest.mark.parametrize("case", OTHER)
def test_whatever_the_trace_depends_on_is_noticed(case: str) -> None:
    assert not twins(*OTHER[case])


def test_a_class_of_the_same_name_is_another() -> None:
    def made() -> nn.Module:
        class Local(Layer):
            pass

        return Local()

    first, second = made(), made()
    reads = trace(first, arguments_of(torch.zeros(2, 4))).reads
    assert not is_twin(make_of(first), reads, second)


def test_what_is_looked_up_by_layer_makes_them_different() -> None:
    layers = LookedUp(), LookedUp()
    BY_LAYER.update(zip(layers, (1.0, 2.0), strict=True))
    reads = trace(layers[0], arguments_of(torch.zeros(2, 4))).reads
    assert not is_twin(make_of(layers[0]), reads, layers[1])


def test_a_trace_is_compared_with_what_was_there_when_it_was_made() -> None:
    first, second = Layer(), Layer()
    reads, make = trace(first, arguments_of(torch.zeros(2, 4))).reads, make_of(first)
    for layer in (first, second):
        layer.eval()
    assert not is_twin(make, reads, second)


def test_buffers_are_compared_where_their_values_were_asked_for() -> None:
    first, second = Layer(), Layer()
    assert same_data(first, second)
    second.offset[0] = 3
    assert not same_data(first, second)
