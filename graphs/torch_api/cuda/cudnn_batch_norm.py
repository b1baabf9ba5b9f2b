"""Batch norm as cuDNN runs it, where torch hands it to cuDNN.

By ``_select_batch_norm_backend`` and ``_batch_norm_impl_index`` (aten/src/ATen/native/
Normalization.cpp, as read; no card has run it). While it is traced, torch puts its own kernel in
the place of cuDNN's, whose signature does not say that it writes running statistics. In train mode
there is an operator that says so and chooses the kernel, forward and backward, when it runs; where
nothing is written, cuDNN's kernel is called by its name. What cuDNN keeps for the backward pass is
asked of a card that is there; for another it is assumed to be nothing, as nothing else is fused.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decompositions
from torch._prims_common import suggest_memory_format

from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.dispatch import composed, use_composition
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.symbolic_sizes import largest

aten = torch.ops.aten
_torch: Any = torch._C
_MOST_ROWS = {True: 880801, False: 65535}
"""In train mode, and otherwise."""
_MOST_ELEMENTS = 2**31 - 1


def batch_norm_of_cuda(patches: Patches, card: Card | None) -> None:
    """Let batch norm be cuDNN's where it is on a card.

    Args:
        patches: what may be undone.
        card: that is planned for; ``None`` if it is the one that the tensors are on.
    """
    use_composition(patches, aten.batch_norm.default, functools.partial(_batch_norm, card))
    patches.on_undo(aten.cudnn_batch_norm.default._dispatch_cache.clear)
    patches.without(aten.cudnn_batch_norm.default.py_kernels, DispatchKey.Autograd)
    aten.cudnn_batch_norm.default._dispatch_cache.clear()
    patches.attribute(decompositions, "_get_batch_norm_reserve_tensor", _kept_for_backward)


def _kept_for_backward(  # noqa: PLR0917, as torch's own
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
    training: bool,  # noqa: FBT001
) -> Tensor:
    """Return room for what cuDNN keeps; a card is asked with sizes as large as they get.

    Torch's own asks with the sizes themselves, which a card cannot be where they are symbols.
    """
    size = 0
    if x.device.type == "cuda":
        shape, stride = (list(map(largest, numbers)) for numbers in (x.shape, x.stride()))
        x = torch.empty_strided(shape, stride, dtype=x.dtype, device=x.device)
        given = x, weight, bias, mean, variance, training, eps
        if _torch._select_batch_norm_backend(*given) == _torch._BatchNormBackend.Cudnn:
            size = _torch._get_cudnn_batch_norm_reserve_space_size(x, training)
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def _batch_norm(  # noqa: PLR0917, the operator's own signature
    card: Card | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    train: bool,  # noqa: FBT001
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: FBT001
) -> Tensor:
    given = x, weight, bias, mean, variance
    made: Tensor
    if not _takes(card, *given, train=train):
        made = composed(aten.batch_norm.default, *given, train, momentum, eps, cudnn_enabled)
        return made
    x = x.contiguous(memory_format=suggest_memory_format(x))
    if train and mean is not None:
        with_update = aten._batch_norm_with_update.default
        made = with_update(x, weight, bias, mean, variance, momentum, eps)[0]
        return made
    made = aten.cudnn_batch_norm.default(x, *given[1:], train, momentum, eps)[0]
    return made


def _takes(  # noqa: PLR0917
    card: Card | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    *,
    train: bool,
) -> bool:
    """Tell whether torch hands such a batch to cuDNN."""
    nvidia = (
        x.device.type == "cuda" and torch.version.hip is None if card is None else card.is_nvidia
    )
    if not nvidia or not torch.backends.cudnn.enabled or weight is None or bias is None:
        return False
    if torch.bfloat16 in {x.dtype, weight.dtype}:
        return False
    if x.dtype is torch.float16 and weight.dtype is not torch.float32:
        return False
    if (mean is None) is not (variance is None) or (mean is None and not train):
        return False
    sizes = list(map(largest, x.shape))  # of fewer rows there are no more
    fits = len(sizes) >= 3 and sizes[0] <= _MOST_ROWS[train]
    return fits and 0 < math.prod(sizes) < _MOST_ELEMENTS
