"""How far two sets of named tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far two sets of tensors are apart, and which tensor is farthest.

    ``relative`` is the largest of ``max|a - b| / max|a|`` over the tensors. A tensor that only one
    side has counts as infinitely far.
    """

    absolute: float = 0.0
    relative: float = 0.0
    name: str = ""

    @property
    def identical(self) -> bool:
        """Whether every bit agrees."""
        return not self.name


def compare_tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Difference:
    """Find the largest difference between tensors of the same name.

    >>> a, b = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])
    >>> compare_tensors({"x": a}, {"x": b})
    Difference(absolute=1.0, relative=0.25, name='x')
    >>> compare_tensors({"x": a}, {"x": a}).identical, compare_tensors({"x": a}, {}).absolute
    (True, inf)
    """
    worst = Difference()
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            return Difference(math.inf, math.inf, name)
        found = _difference(name, left[name].double(), right[name].double())
        if not found.identical and (not worst.name or found.relative > worst.relative):
            worst = found
    return worst


def _difference(name: str, left: Tensor, right: Tensor) -> Difference:
    if torch.allclose(left, right, rtol=0.0, atol=0.0, equal_nan=True):
        return Difference()
    absolute = (left - right).abs().max().item()
    scale = left.abs().max().item()
    return Difference(absolute, absolute / scale if scale else math.inf, name)
