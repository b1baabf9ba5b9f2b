"""The wrapper that AOTAutograd puts around a tensor while it traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._subclasses import functional_tensor


@contextmanager
def lists_asked_for() -> Iterator[None]:
    """Let ``tolist`` be seen by a ``TorchFunctionMode``; the wrapper's own goes past it."""
    wrapper: Any = functional_tensor.FunctionalTensor
    own, wrapper.tolist = wrapper.tolist, Tensor.tolist
    try:
        yield
    finally:
        wrapper.tolist = own
