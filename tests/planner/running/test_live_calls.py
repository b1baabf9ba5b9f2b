"""Calls that wait for their backward passes, counted whatever they return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.debugging import aot_eager

from planner.running.live_calls import LiveCalls

# Dynamo reads it of what an earlier call returned
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


class Returns(nn.Module):
    """A layer that returns views of what it computes, and one of its input before them."""

    def __init__(self, *, given: bool) -> None:
        super().__init__()
        self.layer, self.given = nn.Linear(8, 8), given

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tanh(self.layer(x))
        first = (x.view(-1),) if self.given else ()
        return (*first, hidden.view(-1, 4), hidden.view(-1, 8))


def waiting(*, given: bool) -> list[int]:
    """Count what waits after each of two calls, the second made of what the first returned, and
    after their backward pass.
    """
    torch._dynamo.reset()
    live, found = LiveCalls(2), []

    def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Any:
        return live.watched(aot_eager(module, inputs))

    model = torch.compile(Returns(given=given), backend=backend)
    x, outputs = torch.ones(4, 8), []
    for _ in range(2):
        outputs.append(model(x))
        x = outputs[-1][-1]
        found.append(len(live.waiting))
    x.sum().backward()
    return [*found, len(live.waiting)]


def test_a_call_that_returns_views_waits_until_its_backward_pass() -> None:
    assert waiting(given=False) == [1, 2, 0]


def test_a_view_of_an_input_is_no_call() -> None:
    assert waiting(given=True) == [1, 2, 0]
