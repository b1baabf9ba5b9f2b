"""Closures that are other objects and the same code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard

from planner.graphs.capture.guards.same_code import same_code
from planner.graphs.capture.guards.twins import is_twin, make_of


def scales(by: Any) -> Callable[..., Any]:
    return lambda module, args, output: output * by


def keeps(store: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        store["x"] = output

    return hook


TENSOR, STORE = torch.ones(1), dict[str, Tensor]()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (scales(2), scales(2), True),
        (scales(2), scales(3), False),
        (scales(2), scales(2.0), False),
        (scales(TENSOR), scales(TENSOR), True),
        (scales(TENSOR), scales(torch.ones(1)), False),
        (scales((Shard(1),)), scales((Shard(1),)), True),
        (scales((Shard(1),)), scales((Replicate(),)), False),
        (functools.partial(scales, 1), functools.partial(scales, 1), True),
        (functools.partial(scales, 1), functools.partial(scales, 2), False),
        (keeps(STORE), keeps(STORE), True),
        (keeps({}), keeps({}), False),
        (scales(2), keeps({}), False),
        ("".join, "".join, False),
    ],
)
def test_code_and_all_around_it_counts(one: Any, other: Any, *, same: bool) -> None:
    assert same_code(one, other) is same


@pytest.mark.parametrize(("factor", "twin"), [(2, True), (3, False)])
def test_layers_under_the_same_hooks_are_alike(factor: int, *, twin: bool) -> None:
    layers = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    for layer, by in zip(layers, (2, factor), strict=True):
        layer[0].register_forward_hook(scales(by))
    assert is_twin(make_of(layers[0]), (), layers[1]) is twin
