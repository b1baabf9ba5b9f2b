"""The first step of an optimizer tells once that no plan ran, or that its states have no room."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import PlannerWarning
from tests.scenes import chain, mlp

CALL = torch.ones(256, 16)


def _tight(optimizer: Any, spare: int = 0) -> nn.Module:
    model = chain(mlp(), mlp())
    step = {"inputs": CALL, "optimizer": optimizer, "method": "plain"}
    budget = planner.fit(model, "1GB", **step).peak_bytes + spare
    return planner.fit(model, budget, **step).apply(model)


def test_more_states_than_planned_are_noticed_once() -> None:
    model = _tight("adamw")
    model(CALL).backward()
    larger = torch.optim.AdamW(model.parameters(), amsgrad=True)
    with pytest.warns(PlannerWarning, match=r"states of AdamW hold .* pass the optimizer") as seen:
        larger.step()
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        larger.step()


@pytest.mark.parametrize(
    ("planned", "amsgrad", "spare"),
    [("adamw", False, 0), ("adamw", True, 10**6), (None, True, 0), ("adamw", None, 0)],
)
def test_nothing_is_said_where_it_fits_or_was_told(
    planned: Any, amsgrad: bool | None, spare: int
) -> None:
    model = _tight(planned, spare)
    model(CALL).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if amsgrad is None:  # of another model
            other = nn.Linear(2, 2)
            other(torch.ones(1, 2)).sum().backward()
            torch.optim.AdamW(other.parameters(), amsgrad=True).step()
        else:
            torch.optim.AdamW(model.parameters(), amsgrad=amsgrad).step()


def test_a_step_past_the_plan_is_noticed_once() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    planned = planner.fit(model, "1GB", inputs=CALL, optimizer="sgd").apply(model)
    sgd = torch.optim.SGD(planned.parameters())
    first, second = planned.children()
    second(first(CALL)).sum().backward()
    with pytest.warns(PlannerWarning, match="no call of the planned model has run the plan"):
        sgd.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgd.step()


def test_watching_ends_with_the_model() -> None:
    from torch.optim import optimizer

    gc.collect()
    before = len(optimizer._global_optimizer_post_hooks)
    model = _tight("adamw")
    assert len(optimizer._global_optimizer_post_hooks) == before + 1
    del model
    gc.collect()
    assert len(optimizer._global_optimizer_post_hooks) == before


def test_planned_modules_may_share_an_optimizer() -> None:
    """Each looks once, while torch goes through the hooks of all."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    x = CALL.clone().requires_grad_()
    for i, layer in enumerate(model):
        model[i] = planner.fit(layer, "1GB", inputs=x, optimizer="sgd").apply(layer)
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(2):
        model(x).sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        optimizer.zero_grad()
