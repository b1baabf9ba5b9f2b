"""Tensors without data, and what torch raises when they are asked for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

__all__ = [
    "DATA_DEPENDENT",
    "DataDependentOutputException",
    "FakeTensor",
    "FakeTensorMode",
    "UnsupportedOperatorException",
    "detect_fake_mode",
    "without_log",
]

DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
"""What is raised where code asks for a value, or for a size that depends on one."""

_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@contextmanager
def without_log() -> Iterator[None]:
    """Let an operator that fails on fake tensors be told of once, by its error."""
    level = _LOG.level
    _LOG.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _LOG.setLevel(level)
