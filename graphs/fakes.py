"""Fake kernels for operators whose own are stricter than the real ones, or forget memory.

Knows shapes and strides of results. Knows nothing of capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._meta_registrations import mkldnn_rnn_layer
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

_GROUPED = torch.ops.aten._grouped_mm.default
_RECURRENT = torch.ops.aten.mkldnn_rnn_layer.default


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


def _rnn_layer(mode: FakeTensorMode, func: Any, *args: Any) -> tuple[Tensor, ...]:
    """Return what a recurrent layer of oneDNN returns; torch's own forgets what backward needs."""
    shapes = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else a for a in args[:7])
    with mode:
        *outputs, _ = mkldnn_rnn_layer(*args)
        size = _rnn_workspace_bytes(shapes, (args[7], tuple(args[8]), *args[9:]))
        return *outputs, torch.empty(size, dtype=torch.uint8, device=args[0].device)


@cache
def _rnn_workspace_bytes(shapes: tuple[Any, ...], rest: tuple[Any, ...]) -> int:
    """Ask the library itself, by running one layer: how it packs its workspace is its secret."""
    with _disable_current_modes(), torch.no_grad():
        tensors = [torch.zeros(*s[:1], dtype=s[1]) if isinstance(s, tuple) else s for s in shapes]
        *_, workspace = _RECURRENT(*tensors, rest[0], list(rest[1]), *rest[2:])
        return 0 if workspace is None else int(workspace.numel())  # None: not training


@contextmanager
def lenient_kernels() -> Iterator[None]:
    """Use these fake kernels inside the block."""
    table = fake_impls.op_implementations_dict
    ours: dict[Any, Any] = {_GROUPED: _grouped_mm, _RECURRENT: _rnn_layer}
    before = {op: table[op] for op in ours if op in table}
    table.update(ours)
    try:
        yield
    finally:
        for op in ours:
            del table[op]
        table.update(before)
