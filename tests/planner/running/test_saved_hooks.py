"""Hooks on what autograd saves, around and inside a planned step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import planner
from planner.errors import PlanMismatch
from tests.scenes import Apply, mlp

X = torch.linspace(-1, 1, 128).view(8, 16)


def _moved(m: Any, x: Tensor) -> Tensor:
    with save_on_cpu():
        return m.a(x).square().mean()


def _again(m: Any, x: Tensor) -> Tensor:
    made: Tensor = checkpoint(m.a, x, use_reentrant=False)
    return made.square().mean()


def _alone(m: Any, x: Tensor) -> Tensor:
    made: Tensor = m.a(x)
    return made.square().mean()


def _gradients(model: nn.Module, run: Callable[..., Tensor], around: Any) -> list[Tensor]:
    with around:
        loss = run(model, X)
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _called(model: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = model(x)
    return made


def _checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = checkpoint(model, x, use_reentrant=False)
    return made


@pytest.mark.parametrize("inside", [_moved, _again, _alone])
@pytest.mark.parametrize(
    ("around", "run"),
    [(nullcontext, _called), (save_on_cpu, _called), (nullcontext, _checkpointed)],
)
def test_torchs_own_change_nothing(
    inside: Callable[..., Tensor], around: Any, run: Callable[..., Tensor]
) -> None:
    model = Apply(inside, a=mlp())
    plain = copy.deepcopy(model)
    planned = planner.fit(model, "1MB", inputs=X, optimizer=None).apply(model)
    made = _gradients(planned, run, around())
    for ours, eager in zip(made, _gradients(plain, run, around()), strict=True):
        assert torch.equal(ours, eager)


def test_others_around_a_call_that_trains_are_refused() -> None:
    model = Apply(_alone, a=mlp())
    planned = planner.fit(model, "1MB", inputs=X, optimizer=None).apply(model)
    with saved_tensors_hooks(lambda x: x.half(), lambda x: x.float()):
        with pytest.raises(PlanMismatch, match=r"inside saved_tensors_hooks\(.*<lambda>"):
            planned(X)
        with torch.no_grad():
            assert torch.equal(planned(X), _alone(model, X))
    assert planned(X).requires_grad
