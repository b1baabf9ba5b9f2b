"""Hooks on what autograd saves (``torch.autograd.graph.saved_tensors_hooks``), and whose they are.

Torch's own put values elsewhere or make them again (``save_on_cpu``, checkpoints), and leave them
as they are. Of others nobody knows, and a plan keeps what it keeps without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from planner.graphs.torch_api.patches import Patches

_INSIDE = (
    "saved_tensors_hooks({}, ...) inside the step may change what the backward pass reads, and a "
    "plan decides itself what is kept and where: leave them out of forward (offload= moves values "
    "to the host; torch.utils.checkpoint and save_on_cpu may stay)"
)


def refuse_hooks_inside(patches: Patches) -> None:
    """Refuse hooks that are set while a step is traced, but for torch's own."""
    own = saved_tensors_hooks.__enter__

    @functools.wraps(own)
    def entered(hooks: Any) -> None:
        if patches.mine() and not _is_torchs(hooks.pack_hook):
            raise NotImplementedError(_INSIDE.format(_name(hooks.pack_hook)))
        own(hooks)

    patches.attribute(saved_tensors_hooks, "__enter__", entered)


def hook_around() -> str | None:
    """Return the name of the hook that packs what is saved here, unless it is torch's own or none.

    >>> with saved_tensors_hooks(lambda x: x, lambda x: x):
    ...     hook_around()
    'planner.graphs.torch_api.saved_hooks.<lambda>'
    """
    pair = torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: FBT003
    return None if pair is None or _is_torchs(pair[0]) else _name(pair[0])


def _is_torchs(hook: Callable[..., Any]) -> bool:
    return f"{getattr(hook, '__module__', '')}.".startswith("torch.")


def _name(hook: Callable[..., Any]) -> str:
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    return f"{getattr(hook, '__module__', '')}.{name.rpartition('.<locals>.')[2]}"
