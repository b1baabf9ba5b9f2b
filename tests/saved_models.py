"""The models of the plan files in ``tests/fixtures/plans``: plain torch, nothing imported.

A plan file outlives the program that wrote it. These were written by version 0.1.0 and must load,
say what they said then, and run.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

WIDTH, LENGTH, BATCH, WORDS = 32, 24, 4, 61


class Block(nn.Module):
    """A transformer block with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
            nn.Dropout(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
        x = x + self.out(weights @ v)
        return x + self.wide(x)


class Words(nn.Module):
    """Predict the next word; the loss is inside."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


class Pictures(nn.Module):
    """Convolutions with batch norm; the loss is a callable outside."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 16)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def words() -> tuple[nn.Module, Tensor]:
    """Return the model and a batch."""
    torch.manual_seed(0)
    return Words().train(), torch.randint(WORDS, (BATCH, LENGTH))


def pictures() -> tuple[nn.Module, Tensor, Tensor]:
    """Return the model, a batch and its classes."""
    torch.manual_seed(0)
    return Pictures().train(), torch.randn(BATCH, 3, 16, 16), torch.randint(5, (BATCH,))
