"""Tensors without data, and what torch raises when they are asked for it."""

from __future__ import annotations

from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

__all__ = [
    "DATA_DEPENDENT",
    "DataDependentOutputException",
    "FakeTensor",
    "FakeTensorMode",
    "UnsupportedOperatorException",
    "detect_fake_mode",
    "with_numbers",
]


def with_numbers() -> FakeTensorMode:
    """Return a mode in which a number taken out of a tensor is one that nobody knows yet."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True, static_shapes=True)


DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
"""What is raised where code asks for a value, or for a size that depends on one."""
