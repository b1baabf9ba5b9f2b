"""What a loop holds beside the planned step is told in the plan, and once at run time."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import planner
from planner import PlannerWarning

X = torch.randn(64, 16)


def model_() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))


def loss(out: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def twice(called: nn.Module) -> None:
    (called(X) + called(X)).backward()


def kept(called: nn.Module) -> None:
    for _ in range(2):
        called(X).backward()


def freed(called: nn.Module) -> None:
    for _ in range(3):
        called.zero_grad(set_to_none=True)
        called(X)  # nobody calls its backward
        called(X).backward()


@pytest.mark.parametrize(
    ("step", "accumulate", "words"),
    [
        (twice, False, "called again before the backward pass"),
        (kept, False, "of gradients are kept from an earlier backward"),
        (kept, True, ""),
        (freed, False, ""),
    ],
)
def test_what_is_held_is_told_once(
    step: Callable[[nn.Module], None], accumulate: bool, words: str
) -> None:
    plan = planner.fit(model := model_(), "1GB", inputs=X, loss=loss, accumulate=accumulate)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        planned = plan.apply(model)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            step(planned)
    told = [str(w.message) for w in found if w.category is PlannerWarning]
    assert len(told) == bool(words)
    assert all(words in text for text in told)


def first_lines(**said: object) -> str:
    return " ".join(str(planner.fit(model_(), "1GB", inputs=X, **said)).splitlines()[:6])


def test_what_is_not_counted_is_told_first() -> None:
    assert "not counted: the optimizer, a loss outside the model" in first_lines(optimizer=None)
    assert "not counted: a second call before backward, gradients" in first_lines(loss=loss)
    assert "gradients" not in first_lines(loss=loss, accumulate=True)
