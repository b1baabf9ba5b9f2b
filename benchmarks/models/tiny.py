"""Models small enough for the exact integer program."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.example import Example, images, seeded, tokens
from benchmarks.models.unets import UNet


class _Squared(nn.Module):
    """Linear layers with GELU between them; the loss is the mean square."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.h:
            x = nn.functional.gelu(layer(x))
        return x.square().mean()


def perceptron() -> Example:
    """Build four linear layers."""
    return seeded(lambda: _Squared(64, 4)), {"x": images(1, 64)[0, 0].repeat(16, 1)}


def small_unet() -> Example:
    """Build a U-Net of two sizes."""
    labels = tokens(2, 32 * 32, 4).view(2, 32, 32)
    return seeded(lambda: UNet((8, 16), labels=4)), {"pixels": images(2, 32), "labels": labels}
