"""Watch every module there is: which attributes are read, and when a forward begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


@contextmanager
def attributes_watched(look: Callable[[nn.Module, str, Any], None]) -> Iterator[None]:
    """Call ``look(module, name, value)`` for every attribute that is read inside the block."""

    def read(self: nn.Module, name: str) -> Any:
        value = object.__getattribute__(self, name)
        look(self, name, value)
        return value

    nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


@contextmanager
def forwards_watched(
    enter: Callable[[nn.Module], None], leave: Callable[[nn.Module], None]
) -> Iterator[None]:
    """Call ``enter`` before and ``leave`` after each module's forward, exceptions or not."""
    first = register_module_forward_pre_hook(lambda module, args: enter(module))
    last = register_module_forward_hook(
        lambda module, args, output: leave(module), always_call=True
    )
    try:
        yield
    finally:
        first.remove()
        last.remove()
