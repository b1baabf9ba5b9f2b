"""Loops that do nothing unusual, in the many ways in which they are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.loop_kinds.loop import Net, Setup, batch, loop, trained

KIND = "nothing unusual"


@loop(KIND)
def loss_inside() -> Setup:
    return trained(Net())


@loop(KIND)
def loss_outside() -> Setup:
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))
    targets = torch.randint(0, 8, (32,), generator=torch.Generator().manual_seed(5))
    return Setup(model, lambda called, k: cross_entropy(called(batch(k)), targets))


@loop(KIND)
def arguments_by_position_and_name() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * scale

    def step(called: Any, k: int) -> Tensor:
        calls = [called(batch(k)), called(x=batch(k)), called(batch(k), 1.0)]
        loss: Tensor = calls[0] + calls[1] + calls[2]
        return loss

    return Setup(Model(), step)


@loop(KIND)
def evaluation_between_steps() -> Setup:
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 16))

    def step(called: nn.Module, k: int) -> Tensor:
        called.eval()
        with torch.no_grad():
            called(batch(k, 7))
        called.train()
        loss: Tensor = called(batch(k)).square().mean()
        return loss

    return Setup(model, step)
