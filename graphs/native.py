"""Let operators fall apart under capture exactly as they do in eager mode.

Some operators are made of others, and torch has two versions of their pieces: its own, which eager
mode runs, and one in Python for tracing, which rounds elsewhere, draws other random numbers
(dropout inside a GRU draws none) or loses what the backward kernel needs (the LSTM of oneDNN).
Knows which are which. Knows nothing of capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload

_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
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
            if any(key in op.py_kernels for key in _KEYS):
                yield op


@contextmanager
def eager_pieces() -> Iterator[None]:
    """Use torch's own versions inside the block."""
    hidden = [
        (op, {k: op.py_kernels.pop(k) for k in _KEYS if k in op.py_kernels})
        for op in _python_versions()
    ]
    for op, _ in hidden:
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in hidden:
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
