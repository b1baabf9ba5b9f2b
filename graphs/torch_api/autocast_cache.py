"""Casts of autocast made once for each parameter, as eager mode keeps them.

Tracing switches torch's own cache off. A weight that is used twice would be cast twice, and its
gradient be summed in single precision, where eager mode sums it in the narrow type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

from planner.graphs.torch_api.dispatch import use_kernel, without_autocast
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.pytree import tree_map

_LOWER = """
    conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm
    addmm _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer
    conv_transpose1d conv_transpose2d.input conv_transpose3d.input prelu
    scaled_dot_product_attention _native_multi_head_attention
"""
"""What runs in the narrow type on a CPU: aten/src/ATen/autocast_mode.cpp, AutocastCPU."""


Keeping = tuple[bool, bool]


def keeping_now() -> Keeping:
    """Return whether autocast keeps its casts, and whether this is inside a block of it.

    >>> keeping_now()
    (True, False)
    """
    return torch.is_autocast_cache_enabled(), _depth() > 0


def _depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


class Casts:
    """Casts, those of parameters and other leaves kept until the outermost autocast is left.

    ``keeping`` says whether they are kept at all, and whether the whole step is inside autocast.
    ``kept`` is what the code of the step has made of the former (``cache_enabled=``) while it runs.
    """

    def __init__(self, device: str, keeping: Keeping) -> None:
        self.device = device
        self._at_first, self.inside = keeping
        self.kept, self.running = self._at_first, False
        self._leaves: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def begin(self, leaves: Iterable[Tensor]) -> None:
        """Begin a forward pass.

        Args:
            leaves: what of its tensors eager mode would take for leaves.
        """
        self.kept, self.running = self._at_first, True
        self._made.clear()
        self._leaves = {id(leaf): leaf for leaf in leaves if leaf.requires_grad}

    def end(self) -> None:
        """End a forward pass."""
        self.running = False

    def clear(self) -> None:
        """Forget the casts: the outermost autocast has been left."""
        self._made.clear()

    @property
    def narrow(self) -> torch.dtype:
        """The narrow type at present."""
        return _dtype(self.device)

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a tensor in another dtype, if it is one that autocast may cast."""
        if not may_be_cast(value) or value.dtype == dtype:
            return value
        leaf = id(value) in self._leaves and value.dtype is torch.float32
        if not (leaf and self.kept and dtype == self.narrow):
            return value.to(dtype)
        if id(value) in self._made:
            return self._made[id(value)]
        made = value.to(dtype)
        if torch.is_grad_enabled():  # without gradients it would cut off those of later uses
            self._made[id(value)] = made
        return made

    def all(self, tree: Any, dtype: torch.dtype) -> Any:
        """Cast every tensor of arguments."""
        return tree_map(lambda x: self.cast(x, dtype), tree)


_dtype = torch.get_autocast_dtype


def may_be_cast(value: Any) -> bool:
    """Tell what autocast casts at all."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return floating and value.dtype is not torch.float64


def overload(name: str) -> Any:
    """Return an operator by its name without the namespace.

    >>> overload("conv1d.padding")
    <OpOverload(op='aten.conv1d', overload='padding')>
    """
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")


def casts_on_cpu(patches: Patches, casts: Casts) -> None:
    """Make the casts of a CPU's autocast once.

    Args:
        patches: what may be undone.
        casts: that are kept.
    """
    for op in map(overload, _LOWER.split()):
        use_kernel(patches, op, DispatchKey.AutocastCPU, lower(op, casts))
    follow_the_code(patches, casts)


def lower(op: Any, casts: Casts) -> Any:
    """Return what runs an operator in the narrow type."""
    return cast_first(op, casts, lambda _: casts.narrow)


def cast_first(op: Any, casts: Casts, dtype_of: Callable[[Any], torch.dtype]) -> Any:
    """Return what runs an operator on arguments of one dtype, outside autocast.

    Args:
        op: the operator.
        casts: that are kept.
        dtype_of: says which dtype, of the arguments.
    """

    def called(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            dtype = dtype_of((args, kwargs))
            return op(*casts.all(args, dtype), **casts.all(kwargs, dtype))

    return called


def follow_the_code(patches: Patches, casts: Casts) -> None:
    """Let the step's code say what is kept, and how long, as if it ran in eager mode.

    Tracing has switched torch's own cache off, and the blocks around it are not those around the
    step: how deep the code is in blocks of autocast is counted from the step's own.
    """
    asked, told, cleared, left = (
        torch.is_autocast_cache_enabled,
        torch.set_autocast_cache_enabled,
        torch.clear_autocast_cache,
        torch.autocast_decrement_nesting,
    )
    outside = _depth()

    def running() -> bool:
        return casts.running and patches.mine()

    def enabled() -> bool:
        return casts.kept if running() else asked()

    def enable(value: Any) -> None:
        if running():
            casts.kept = bool(value)
        else:
            told(value)

    def clear() -> None:
        casts.clear() if running() else cleared()

    def leave() -> int:
        depth: int = left()
        return depth - outside + casts.inside if running() else depth  # at 0 torch clears

    for own, ours in ((asked, enabled), (told, enable), (cleared, clear), (left, leave)):
        patches.attribute(torch, own.__name__, ours)
