"""Let operators fall apart under capture exactly as they do in eager mode.

Some operators are made of others, and torch has two versions of their pieces: its own, which eager
mode runs, and one in Python for tracing, which rounds elsewhere, draws other random numbers
(dropout inside a GRU draws none) or loses what the backward kernel needs (the LSTM of oneDNN).
Others only check values, and tracing would order them by tokens that eager mode does not have.
Knows which are which. Knows nothing of capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._decomp.decompositions import matmul
from torch._higher_order_ops.effects import _register_effectful_op
from torch._ops import OpOverload
from torch.fx.node import _side_effectful_functions

from planner.graphs.torch_api.dispatch import COMPOSED, composed, use_composition
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.versions import newer

_effect_of = newer("torch._higher_order_ops.effects:_get_effect")

_DROPOUT = torch.ops.aten.dropout.default
_MATMUL = torch.ops.aten.matmul.default
_CHECK: Any = torch.ops.aten._linalg_check_errors.default
_TRACED = frozenset(
    {
        "native_batch_norm",  # functional, so that running statistics are seen to change
        "cudnn_batch_norm",
        "one_hot",  # torch's own asks for the values of the classes to check them
        "tensor_split",
        "matmul",  # torch's own folds batches otherwise when it meets a tensor subclass
    }
)
"""Operators that keep their Python version."""


def _python_versions() -> Iterator[OpOverload[..., Any]]:
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        if name in _TRACED or not isinstance(packet, torch._ops.OpOverloadPacket):
            continue
        for overload in packet.overloads():  # type: ignore[no-untyped-call]
            op = getattr(packet, overload)
            if any(key in op.py_kernels for key in COMPOSED):
                yield op


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:  # noqa: FBT001, the operator's own
    """Keep a mask of one byte an element wherever that rounds as eager mode's float noise does."""
    if train and 0 < p < 1 and x.device.type == "cpu" and _masks_exactly(p, x.dtype):
        return torch.ops.aten.native_dropout.default(x, p, train)[0]  # type: ignore[no-any-return]
    made: Tensor = composed(_DROPOUT, x, p, train)
    return made


def _masks_exactly(p: float, dtype: torch.dtype) -> bool:
    """Tell whether dividing by ``1 - p`` and multiplying by its reciprocal round alike.

    >>> _masks_exactly(0.1, torch.float32), _masks_exactly(0.15, torch.float32)
    (True, False)
    """
    if dtype not in (torch.float32, torch.float64):
        return False  # the scale is rounded to the narrow type in one and not in the other
    kind = np.dtype(str(dtype).removeprefix("torch."))
    return bool(kind.type(1) / kind.type(1 - p) == kind.type(1 / (1 - p)))


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a product that is no view, as eager mode's is none: writing into it copies nothing."""
    made: Tensor = matmul(a, b)
    product = made._base
    if product is None or not (product.is_contiguous() and made.is_contiguous()):
        return made
    return torch.ops.aten._unsafe_view.default(product, made.shape)  # type: ignore[no-any-return]


def eager_pieces(patches: Patches, *, lean: bool = True) -> None:
    """Use torch's own versions, and the leaner of two equal dropouts if asked."""
    hidden = list(_python_versions())
    for op in hidden:
        _forget_dispatch(patches, op)
        for key in COMPOSED:
            patches.without(op.py_kernels, key)
    for op in hidden:
        op._dispatch_cache.clear()
    use_composition(patches, _MATMUL, _matmul)
    if lean:
        use_composition(patches, _DROPOUT, _dropout)
    _check_without_tokens(patches)


def _forget_dispatch(patches: Patches, op: OpOverload[..., Any]) -> None:
    """Once the kernels are back, look them up anew."""
    patches.on_undo(op._dispatch_cache.clear)


def _check_without_tokens(patches: Patches) -> None:
    """Keep the check after a factorization as the call it is, which nothing reads."""
    before = _effect_of(_CHECK)
    patches.on_undo(lambda: _register_effectful_op(_CHECK, before))
    _register_effectful_op(_CHECK, None)
    patches.member(_side_effectful_functions, _CHECK)
