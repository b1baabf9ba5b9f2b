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
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

__all__ = [
    "DATA_DEPENDENT",
    "DataDependentOutputException",
    "FakeTensor",
    "FakeTensorMode",
    "UnsupportedOperatorException",
    "detect_fake_mode",
    "stands_for_tensors",
    "with_numbers",
]


def with_numbers() -> FakeTensorMode:
    """Return a mode in which a number taken out of a tensor is one that nobody knows yet."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True, static_shapes=True)


def stands_for_tensors(cls: type) -> bool:
    """Tell a type that tensors have while they are traced, and never in a training loop.

    Args:
        cls: any class.

    >>> import torch
    >>> stands_for_tensors(FakeTensor), stands_for_tensors(torch.Tensor)
    (True, False)
    """
    return issubclass(cls, FakeTensor | FunctionalTensor)


DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
"""What is raised where code asks for a value, or for a size that depends on one."""
