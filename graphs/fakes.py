"""Fake kernels for operators whose own are stricter than the real ones, or return other types.

Knows shapes and strides of results. Knows nothing of capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode

_GROUPED = torch.ops.aten._grouped_mm.default
_LAYER_NORM = torch.ops.aten.native_layer_norm.default
_GROUP_NORM = torch.ops.aten.native_group_norm.default


def _grouped_mm(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return what a grouped product returns, in any dtype; torch's own knows bfloat16 alone.

    Rows are padded to 16 bytes, as the kernel pads them.
    """
    if a.dim() == b.dim() == 2:
        assert offs is not None
        size = (offs.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 2:
        size = (a.shape[0], b.shape[2])  # type: ignore[assignment]
    elif b.dim() == 2:
        size = (a.shape[1], b.shape[1])  # type: ignore[assignment]
    else:
        size = (a.shape[0], a.shape[1], b.shape[2])
    dtype = out_dtype or a.dtype
    per_line = 16 // dtype.itemsize
    row = -(-size[-1] // per_line) * per_line
    stride = (row, 1) if len(size) == 2 else (size[1] * row, row, 1)
    with mode:
        return torch.empty_strided(size, stride, dtype=dtype, device=a.device)


def _layer_norm(
    mode: FakeTensorMode, func: Any, x: Tensor, shape: Any, weight: Tensor | None, *rest: Any
) -> Any:
    """Return what layer norm returns under autocast on a CPU: statistics in single precision."""
    if not _mixed_on_cpu(x, weight):
        return NotImplemented
    counts = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    return _normalized(mode, x, counts)


def _group_norm(
    mode: FakeTensorMode, func: Any, x: Tensor, weight: Tensor | None, *rest: Any
) -> Any:
    """Return what group norm returns under autocast on a CPU: statistics in single precision."""
    if not _mixed_on_cpu(x, weight):
        return NotImplemented
    _, n, _, _, groups, _ = rest
    return _normalized(mode, x, (n, groups))


def _mixed_on_cpu(x: Tensor, weight: Tensor | None) -> bool:
    return x.device.type == "cpu" and weight is not None and weight.dtype != x.dtype


def _normalized(mode: FakeTensorMode, x: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, ...]:
    with mode:
        mean = torch.empty(counts, dtype=torch.float32, device=x.device)
        return torch.empty_like(x), mean, torch.empty_like(mean)


_OURS: dict[Any, Any] = {
    _GROUPED: _grouped_mm,
    _LAYER_NORM: _layer_norm,
    _GROUP_NORM: _group_norm,
}


@contextmanager
def lenient_kernels() -> Iterator[None]:
    """Use these fake kernels inside the block."""
    table = fake_impls.op_implementations_dict
    before = {op: table[op] for op in _OURS if op in table}
    table.update(_OURS)
    try:
        yield
    finally:
        for op in _OURS:
            del table[op]
        table.update(before)
