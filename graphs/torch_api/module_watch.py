"""Watch what the capturing thread does: attributes it reads, forwards of modules it runs.

Torch has one place for every module and thread: what other threads do is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as every_module

from planner.graphs.torch_api.patches import Patches


def watch_attributes(
    patches: Patches, cls: type, look: Callable[[Any, str, Any], None], missing: Any
) -> None:
    """Call ``look(owner, name, value)`` for every attribute of a class's instances that is read.

    Args:
        patches: what undoes it.
        cls: a class written in Python.
        look: called with the object, the name and what was found.
        missing: what is said to be found where the object has no such attribute.
    """
    own: Any = cls.__getattribute__

    def read(self: Any, name: str) -> Any:
        if not patches.mine():
            return own(self, name)
        try:
            value = own(self, name)
        except AttributeError:
            look(self, name, missing)
            raise
        look(self, name, value)
        return value

    patches.attribute(cls, "__getattribute__", read)


def watch_writes(patches: Patches, cls: type, look: Callable[[Any, str], None]) -> None:
    """Call ``look(owner, name)`` before an attribute of a class's instances is set.

    Args:
        patches: what undoes it.
        cls: a class written in Python.
        look: called with the object and the name.
    """
    own: Any = cls.__setattr__

    def write(self: Any, name: str, value: Any) -> None:
        if patches.mine():
            look(self, name)
        own(self, name, value)

    patches.attribute(cls, "__setattr__", write)


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
