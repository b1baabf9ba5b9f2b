"""Fake kernels for operators whose own are stricter than the real ones.

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


@contextmanager
def lenient_kernels() -> Iterator[None]:
    """Use these fake kernels inside the block."""
    table = fake_impls.op_implementations_dict
    before = table.get(_GROUPED)
    table[_GROUPED] = _grouped_mm
    try:
        yield
    finally:
        if before is None:
            table.pop(_GROUPED)
        else:
            table[_GROUPED] = before
