"""Experts in one tensor, fewer than there are ranks: parted along another dimension."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.parameter_groups import shard_dimension, shard_shape
from planner.sharding.wrapped.unit_captures import capture_units
from planner.verification.ranks import ShardedTrial, run_ranks
from tests.planner.sharding.ranks import plan_of
from tests.planner.verification.test_ranks import assert_held

WIDTH, SAMPLES, EXPERTS = 128, 16, 3


class Experts(nn.Module):
    """A small layer of experts, each of whom sees every row, weighed by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 4 * WIDTH) / WIDTH)
        self.down = nn.Parameter(torch.randn(EXPERTS, 4 * WIDTH, WIDTH) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.einsum("bi,eij->ebj", x, self.up).relu()
        made = torch.einsum("ebj,ejk->ebk", made, self.down)
        return x + torch.einsum("be,ebk->bk", self.router(x).softmax(-1), made)


class Net(nn.Module):
    """A stem and two layers of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.h = nn.ModuleList(Experts() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.h:
            x = block(x)
        return x.square().mean()


def build(rank: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Net().train()
    return model, torch.randn(SAMPLES, 64, generator=torch.Generator().manual_seed(rank))


@functools.cache
def captures() -> object:
    model, x = build(0)
    return capture_units(model, x, device="cpu", units=["h.0", "h.1"])


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_planned_and_plain_agree_and_hold_what_was_said(ranks: int) -> None:
    configuration = Configuration(Strategy.FSDP, ranks, 1, SAMPLES)
    plan = plan_of(captures(), configuration, (False, False))  # type: ignore[arg-type]
    assert shard_dimension((EXPERTS, WIDTH, 4 * WIDTH), ranks) == 2
    planned = ShardedTrial(build, configuration, plan.units, plan, steps=2)
    plain = ShardedTrial(build, configuration, plan.units, None, steps=2)
    found, expected = run_ranks([planned, plain])
    for one, other in zip(found, expected, strict=True):
        assert one.losses == other.losses
        for name in ("gradients", "parameters"):
            left, right = getattr(one, name), getattr(other, name)
            assert all(torch.equal(left[n], right[n]) for n in right)
    assert_held(plan, found)


@pytest.mark.parametrize(
    ("shape", "ranks", "dimension"),
    [
        ((8, 14336, 4096), 64, 1),
        ((8, 4096, 14336), 64, 2),
        ((8, 14336, 4096), 8, 0),
        ((50257, 768), 64, 0),
        ((3, 5, 7), 64, 0),
        ((), 4, 0),
        ((1,), 4, 0),
        ((9, 8), 8, 1),
        ((17, 8), 16, 0),
    ],
)
def test_the_dimension_that_wastes_least(
    shape: tuple[int, ...], ranks: int, dimension: int
) -> None:
    assert shard_dimension(shape, ranks) == dimension
    assert len(shard_shape(shape, ranks)) == max(1, len(shape))
