"""Kernels of a CPU that stand in for a card's, and capture as for that card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from planner.graphs.capture import trace as tracing
from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.patches import Patches


@contextmanager
def standing_in(
    kernels: Mapping[str, Callable[..., Any]],
    of_cuda: Callable[[Patches, Card], None],
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Let kernels of ``aten`` run on a CPU, and a CPU capture what is a card's alone."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for name, kernel in kernels.items():
        library.impl(name, kernel)
    own = tracing.eager_pieces

    def pieces(patches: Patches, **options: Any) -> None:
        own(patches, **options)
        of_cuda(patches, card)

    monkeypatch.setattr(tracing, "eager_pieces", pieces)
    yield
    library._destroy()
