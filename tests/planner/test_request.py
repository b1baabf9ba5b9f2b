"""What a person says of a training step, and what a model says of itself."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import CaptureError
from planner.request import example_inputs, optimizer_name


def test_the_models_own_example_is_used(make_net: Callable[[], nn.Module]) -> None:
    model = make_net()
    model.example_input_array = torch.zeros(8, 16)
    assert "8, 16" in planner.fit(model, "1GB").signature["inputs"][0]


class Dummy(nn.Module):
    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(5, 16)}


def test_dummy_inputs_are_used() -> None:
    assert example_inputs(Dummy())["x"].shape == (5, 16)


def test_no_inputs_says_what_to_pass(make_net: Callable[[], nn.Module]) -> None:
    with pytest.raises(CaptureError, match=r"Net has neither .*: pass inputs="):
        planner.fit(make_net(), "1GB")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (None, None),
        ("sgd", "sgd"),
        (torch.optim.SGD, "SGD"),
        (torch.optim.SGD([torch.zeros(1)]), "SGD"),
        (partial(torch.optim.SGD, lr=0.1), "partial"),
    ],
)
def test_optimizer_names(optimizer: Any, name: str | None) -> None:
    assert optimizer_name(optimizer) == name
