"""Standing between a call and its kernel: watching every operator, or keeping out of its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from planner.graphs.torch_api.patches import Patches

__all__ = [
    "COMPOSED",
    "TorchDispatchMode",
    "composed",
    "heeds_autocast",
    "inside_a_transform",
    "use_composition",
    "use_kernel",
    "without_autocast",
    "without_modes",
]


COMPOSED = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
"""Where an operator that is composed of others may have a version in Python."""


@contextmanager
def without_modes() -> Iterator[None]:
    """Call operators as if no mode were on, fake tensors' and our own included."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def without_autocast() -> AbstractContextManager[None]:
    """Call operators in the dtypes of their arguments."""
    return torch._C._DisableAutocast()


def inside_a_transform() -> bool:
    """Tell whether a transform of ``torch.func`` (vmap, grad, jvp) or forward mode is around.

    >>> inside_a_transform(), torch.vmap(lambda x: x * inside_a_transform())(torch.ones(1)).item()
    (False, 1.0)
    """
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def heeds_autocast(target: OpOverload, device: str) -> bool:
    """Tell an operator that autocast may hand other dtypes than it was called with.

    Args:
        target: the operator.
        device: the type of the device that its tensors are on.

    >>> heeds_autocast(torch.ops.aten.mm.default, "cpu")
    True
    >>> heeds_autocast(torch.ops.aten.relu.default, "cpu")
    False
    """
    if not torch.amp.is_autocast_available(device):
        return False
    key = f"Autocast{device.upper()}"
    name: str = target.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def use_composition(patches: Patches, op: Any, kernel: Any) -> None:
    """Let an operator that torch composes of others be composed otherwise while it is traced.

    Args:
        patches: what may be undone.
        op: the operator.
        kernel: called with the operator's arguments.
    """
    for key in COMPOSED:
        use_kernel(patches, op, key, kernel)


def composed(op: Any, *args: Any) -> Any:
    """Call an operator as torch itself composes it.

    Args:
        op: the operator.
        *args: its arguments.
    """
    return op._op_dk(DispatchKey.CompositeImplicitAutograd, *args)


def use_kernel(patches: Patches, op: Any, key: DispatchKey, kernel: Any) -> None:
    """Give an operator another kernel while it is traced.

    Args:
        patches: what may be undone.
        op: the operator.
        key: for which the kernel is.
        kernel: called with the operator's arguments.
    """
    patches.on_undo(op._dispatch_cache.clear)  # once its own are back, they are looked up anew
    patches.entry(op.py_kernels, key, kernel)
    op._dispatch_cache.clear()
