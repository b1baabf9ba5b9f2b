"""Differences between tensors: none, some, one side missing, not a number."""

import math

import pytest
import torch

from planner.verification.difference import Difference, compare_tensors


def test_identical_tensors_differ_in_nothing() -> None:
    tensors = {"a": torch.randn(3), "b": torch.tensor([math.nan, math.inf])}
    assert compare_tensors(tensors, {n: t.clone() for n, t in tensors.items()}) == Difference()


def test_the_relatively_farthest_tensor_is_named() -> None:
    left = {"big": torch.tensor([1000.0]), "small": torch.tensor([1.0])}
    right = {"big": torch.tensor([1001.0]), "small": torch.tensor([1.5])}
    assert compare_tensors(left, right) == Difference(0.5, 0.5, "small")


@pytest.mark.parametrize("sides", [({"a": torch.ones(1)}, {}), ({}, {"a": torch.ones(1)})])
def test_a_tensor_on_one_side_only_is_infinitely_far(
    sides: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
) -> None:
    assert compare_tensors(*sides) == Difference(math.inf, math.inf, "a")


def test_one_bit_is_a_difference() -> None:
    one = torch.tensor([1.0])
    found = compare_tensors({"a": one}, {"a": torch.nextafter(one, torch.tensor([2.0]))})
    assert not found.identical
    assert found.absolute == 2.0**-23
