"""Standing between a call and its kernel: watching every operator, or keeping out of its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["TorchDispatchMode", "without_autocast", "without_modes"]


@contextmanager
def without_modes() -> Iterator[None]:
    """Call operators as if no mode were on, fake tensors' and our own included."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def without_autocast() -> AbstractContextManager[None]:
    """Call operators in the dtypes of their arguments."""
    return torch._C._DisableAutocast()
