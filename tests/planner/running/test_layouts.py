"""Kernels that write in place of an operand leave a result where eager mode would lay it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner
from planner.graphs.capture.passes.inplace import written_over

aten = torch.ops.aten
LAST = torch.channels_last


class Pyramid(nn.Module):
    """Adds what is pooled to one pixel, normed and spread again to a map with its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.side, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(self.narrow(F.adaptive_avg_pool2d(x, 1))).relu()
        spread = F.interpolate(pooled, size=x.shape[2:], mode="bilinear")
        return self.last(self.side(x).relu() + spread).square().mean()


@pytest.mark.parametrize("method", ["auto", "recompute_all"])
def test_a_result_is_laid_as_in_eager_mode(method: str) -> None:
    torch.manual_seed(0)
    model = Pyramid()
    x = torch.randn(4, 8, 6, 6).to(memory_format=LAST)
    plain = copy.deepcopy(model)
    planned = planner.fit(model, "1GB", inputs=x, method=method).apply(model)
    losses = []
    for each in (plain, planned):
        losses.append(each(x))
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, p), q in zip(plain.named_parameters(), planned.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad), name


SHAPE = (2, 6, 3, 3)
ONE = (2, 6, 1, 1)
LAYOUTS = {
    "contiguous": torch.randn(SHAPE),
    "channels last": torch.randn(SHAPE).to(memory_format=LAST),
    "permuted": torch.randn(6, 2, 3, 3).transpose(0, 1),
    "one pixel": torch.randn(ONE),
    "one pixel, channels last": torch.randn(ONE).to(memory_format=LAST),
    "a channel": torch.randn(1, 6, 1, 1),
    "a number, expanded": torch.randn(()).expand(SHAPE),
    "a channel, expanded": torch.randn(1, 6, 1, 1).expand(SHAPE),
    "a column, expanded": torch.randn(2, 6, 3, 1).expand(SHAPE),
    "a map, expanded, its channels last": torch.randn(1, 3, 3, 6).movedim(3, 1).expand(SHAPE),
    "a part": torch.randn(2, 6, 3, 8)[..., 2:5],
    "every other channel": torch.randn(2, 12, 3, 3)[:, ::2],
    "a map": torch.randn(1, 6, 3, 3).to(memory_format=LAST),
    "a number": torch.tensor(2.0),
}


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_what_is_written_over_lies_as_what_is_made(first: str, other: str) -> None:
    a, b = LAYOUTS[first], LAYOUTS[other]
    made = a + b
    for operand in (a.clone(), b.clone()):
        if operand.shape == made.shape and operand.dim():
            args = (operand, b) if operand.stride() == a.stride() else (a, operand)
            wanted = args[0] + args[1]
            found = written_over(aten.add.Tensor, aten.add.out, "out", operand, *args)
            assert torch.equal(found, wanted)
            assert found.stride() == wanted.stride()


def test_what_lies_alike_is_written_over() -> None:
    a, b = torch.randn(SHAPE), torch.randn(1, 6, 1, 1)
    assert written_over(aten.mul.Tensor, aten.mul.out, "out", a, a, b) is a


class _Laid(nn.Module):
    """A parameter of each layout."""

    def __init__(self) -> None:
        super().__init__()
        self.laid = nn.ParameterList([nn.Parameter(x) for x in LAYOUTS.values() if x.dim()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(p.mT.exp() * p.mT * x).sum() for p in self.laid]).sum()


def test_gradients_are_laid_as_in_eager_mode() -> None:
    """As their parameters, but row by row where those overlap or have gaps."""
    x = torch.randn(1, 1, 1, 1)
    plain = _Laid()
    planned = planner.fit(plain, "1GB", inputs=x, optimizer=None).apply(plain)
    found = []
    for model in (plain, planned):
        for _ in range(2):
            model(x).backward()
        found.append([p.grad for p in plain.parameters()])
        plain.zero_grad(set_to_none=True)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
