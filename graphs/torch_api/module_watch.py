"""Watch what the capturing thread does with modules: attributes it reads, forwards it runs.

Torch has one place for every module and thread: what other threads do is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as every_module

from planner.graphs.torch_api.patches import Patches


def watch_attributes(patches: Patches, look: Callable[[nn.Module, str, Any], None]) -> None:
    """Call ``look(module, name, value)`` for every attribute of a module that is read."""
    own: Callable[[Any, str], Any] = nn.Module.__getattribute__

    def read(self: nn.Module, name: str) -> Any:
        value = own(self, name)
        if patches.mine():
            look(self, name, value)
        return value

    patches.attribute(nn.Module, "__getattribute__", read)


def watch_forwards(
    patches: Patches, enter: Callable[[nn.Module], None], leave: Callable[[nn.Module], None]
) -> None:
    """Call functions around every forward, ``leave`` after an exception, too.

    Args:
        patches: what registers and removes them.
        enter: called with the module before its forward.
        leave: called with the module after it.
    """

    def before(module: nn.Module, args: Any) -> None:
        if patches.mine():
            enter(module)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if patches.mine():
            leave(module)

    patches.on_undo(lambda: _forget(before, after))
    every_module.register_module_forward_pre_hook(before)
    every_module.register_module_forward_hook(after, always_call=True)


def _forget(*hooks: Callable[..., None]) -> None:
    """Remove hooks by what they are: an interrupted registration leaves no handle."""
    tables = (every_module._global_forward_pre_hooks, every_module._global_forward_hooks)
    for table in tables:
        for key in [key for key, hook in table.items() if hook in hooks]:
            every_module._global_forward_hooks_always_called.pop(key, None)
            del table[key]
