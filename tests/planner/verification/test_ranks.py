"""What ranks really hold against what their plans say: the effects of sharding one by one."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.plans import ShardedPlan
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.verification.ranks import RankMeasurement, ShardedTrial, run_ranks
from tests.planner.sharding.ranks import plan_of

WIDTH, SAMPLES = 256, 32
DDP = Configuration(Strategy.DDP, 1, 2, micro_batch=SAMPLES)
FSDP = Configuration(Strategy.FSDP, 2, micro_batch=SAMPLES)
CASES = {
    "plain": (FSDP, (False, False)),
    "autocast": (Configuration(Strategy.DDP, 1, 2, SAMPLES, precision="bfloat16"), (False, False)),
    "micro-steps": (Configuration(Strategy.DDP, 1, 2, SAMPLES, accumulation=3), (False, False)),
    "sharded micro-steps in bfloat16": (
        Configuration(Strategy.FSDP, 2, 1, SAMPLES, accumulation=2, precision="bfloat16"),
        (True, False),
    ),
}
FOUR = {
    "four ranks": (Configuration(Strategy.FSDP, 4, 1, SAMPLES), (False, False)),
    "replicated micro-steps": (
        Configuration(Strategy.FSDP, 2, 2, SAMPLES, accumulation=3),
        (False, False),
    ),
}


class Net(nn.Module):
    """Weights that dwarf what is too small to be watched."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.h = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.h:
            x = x + block(x)
        return x.square().mean()


def build(rank: int, samples: int = SAMPLES, hidden: int = 1024) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Net(hidden).train()
    return model, torch.randn(samples, 64, generator=torch.Generator().manual_seed(rank))


@functools.cache
def captures(precision: str, hidden: int) -> ModelCapture:
    model, x = build(0, hidden=hidden)
    units = ["h.0", "h.1"]
    return capture_units(model, x, device="cpu", precision=precision, units=units)


def planned(configuration: Configuration, kept: tuple[bool, ...], hidden: int) -> ShardedPlan:
    return plan_of(captures(configuration.computes_in, hidden), configuration, kept)


def trial(plan: ShardedPlan, hidden: int) -> ShardedTrial:
    samples = SAMPLES * plan.configuration.accumulation
    factory = functools.partial(build, samples=samples, hidden=hidden)
    return ShardedTrial(factory, plan.configuration, plan.units, plan, steps=0, compared=False)


def measured(
    cases: dict[str, tuple[Configuration, tuple[bool, ...]]], hidden: int = 1024
) -> dict[str, tuple[ShardedPlan, list[RankMeasurement]]]:
    plans = [planned(*case, hidden) for case in cases.values()]
    found = run_ranks([trial(plan, hidden) for plan in plans])
    return dict(zip(cases, zip(plans, found, strict=True), strict=True))


@pytest.fixture(scope="module")
def two() -> dict[str, tuple[ShardedPlan, list[RankMeasurement]]]:
    return measured(CASES)


@pytest.fixture(scope="module")
def four() -> dict[str, tuple[ShardedPlan, list[RankMeasurement]]]:
    return measured(FOUR)


def assert_held(plan: ShardedPlan, found: list[RankMeasurement]) -> None:
    expected = plan.peak_bytes - plan.reserve_bytes
    for rank in found:
        assert rank.complete
        assert rank.peak_bytes <= plan.peak_bytes
        assert rank.peak_bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_hold_what_their_plan_says(
    two: dict[str, tuple[ShardedPlan, list[RankMeasurement]]], case: str
) -> None:
    assert_held(*two[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUR)
def test_four_ranks_hold_what_their_plan_says(
    four: dict[str, tuple[ShardedPlan, list[RankMeasurement]]], case: str
) -> None:
    assert_held(*four[case])


@pytest.mark.slow
def test_rows_that_ranks_cannot_share_evenly_are_padded() -> None:
    uneven = {"four ranks": FOUR["four ranks"]}
    assert_held(*measured(uneven, hidden=1021)["four ranks"])
