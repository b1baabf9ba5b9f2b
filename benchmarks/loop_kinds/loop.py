"""What a training loop of the collection is, and the small model that most of them train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

Step = Callable[[nn.Module, int], Tensor]
"""Computes the loss of step k by calling a model, plain or planned; the loop does the rest."""


@dataclass(frozen=True)
class Setup:
    """A loop ready to run: the model, the loss of each step, and what ``fit`` is told.

    ``called`` is what is planned, if it is not the whole model.
    """

    model: nn.Module
    step: Step
    fit: Mapping[str, Any] = field(default_factory=dict)
    apply: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 4


@dataclass(frozen=True)
class Loop:
    """A training loop. ``refused`` is a word of the error, if it cannot be planned."""

    name: str
    kind: str
    make: Callable[[], Setup]
    refused: str = ""


LOOPS: dict[str, Loop] = {}


def loop(kind: str, *, refused: str = "") -> Callable[[Callable[[], Setup]], Callable[[], Setup]]:
    """Add a loop to the collection under its function's name.

    Args:
        kind: what is special about it.
        refused: a word of the error that ``fit`` or the first differing call raises; by default
            the planned loop equals the plain one in every bit.
    """

    def add(make: Callable[[], Setup]) -> Callable[[], Setup]:
        name = make.__name__
        assert name not in LOOPS, f"two loops are called {name}"
        LOOPS[name] = Loop(name, kind, make, refused)
        return make

    return add


class Net(nn.Module):
    """Two layers with a dropout between them, and a mean square as its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.drop = nn.Dropout(0.1)

    def body(self, x: Tensor) -> Tensor:
        """Return the output of the layers."""
        out: Tensor = self.down(gelu(self.drop(self.up(x))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        return self.body(x).square().mean()


def batch(k: int = 0, rows: int = 32) -> Tensor:
    """Return the inputs of step k."""
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(k))


def trained(model: nn.Module, before: Callable[[Any, int], object] | None = None) -> Setup:
    """Return the plainest loop over a model.

    Args:
        model: called with a batch, returns the loss.
        before: called with the model and the number of the step before each step.
    """

    def step(called: nn.Module, k: int) -> Tensor:
        if before is not None:
            before(model, k)
        loss: Tensor = called(batch(k))
        return loss

    return Setup(model, step)
