"""What a zoo function returns, and the few lines that all of them share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, dict[str, Tensor]]
Factory = Callable[[], Example]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model in train mode, with the same random weights every time."""
    torch.manual_seed(0)
    return build().train()


def tokens(batch: int, length: int, vocabulary: int) -> Tensor:
    """Draw token ids, the same every time.

    >>> tokens(2, 3, 10).shape
    torch.Size([2, 3])
    """
    return torch.randint(0, vocabulary, (batch, length), generator=_generator())


def images(batch: int, size: int, channels: int = 3) -> Tensor:
    """Draw images from a normal distribution, the same every time."""
    return torch.randn(batch, channels, size, size, generator=_generator())


def classes(batch: int, count: int) -> Tensor:
    """Draw class labels, the same every time."""
    return torch.randint(0, count, (batch,), generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
