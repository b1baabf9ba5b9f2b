"""T5: blocks that hand an input on, alike but for the first ones, on ranks that really run."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.verification.ranks import ShardedTrial, run_ranks
from tests.planner.sharding.ranks import plan_of

hf = pytest.importorskip("transformers")
SAMPLES = 4


def build(rank: int) -> tuple[nn.Module, dict[str, Any]]:
    config = hf.T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4, use_cache=False,
        dropout_rate=0.1, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(rank)
    ids, labels = (torch.randint(1, 128, (SAMPLES, n), generator=generator) for n in (32, 16))
    model = hf.T5ForConditionalGeneration(config).train()
    return model, {"input_ids": ids, "labels": labels}


@functools.cache
def captures() -> ModelCapture:
    model, inputs = build(0)
    return capture_units(model, inputs, device="cpu")


def test_blocks_are_alike_but_for_the_first() -> None:
    assert captures().kind_of == (0, 1, 1, 2, 3, 3)


@pytest.mark.slow  # one run of two ranks in sixteen ended by a crash of a rank, cause not known
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ranks", [2, 4])
def test_planned_is_plain(ranks: int) -> None:
    configuration = Configuration(Strategy.FSDP, ranks, 1, SAMPLES)
    plan = plan_of(captures(), configuration, (False, True) * 3)
    trial = functools.partial(ShardedTrial, build, configuration, plan.units)
    planned, plain = run_ranks([trial(plan, steps=2), trial(None, steps=2)])
    for one, other in zip(planned, plain, strict=True):
        assert one.losses == other.losses
        for name in ("gradients", "parameters"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[n], right[n]) for n in right)
        assert one.peak_bytes == pytest.approx(plan.peak_bytes - plan.reserve_bytes, rel=0.02)
