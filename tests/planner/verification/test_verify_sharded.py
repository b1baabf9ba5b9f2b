"""A plan for several ranks, checked by training on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import planner
from planner.errors import BadRequest
from planner.tensor_parallel import TensorParallel
from tests.planner.sharding.parted.decoders import batch, decoder, step, styles

PARTED = TensorParallel(styles(), degrees=(2,))


def example() -> tuple[nn.Module, dict[str, Any]]:
    return decoder(), batch()


@pytest.fixture(scope="module")
def plan() -> planner.ShardedPlan:
    plain = planner.fit(decoder(), "1GB", tensor_parallel=PARTED, **step(world_size=2))
    return planner.fit(
        decoder(), int(plain.peak_bytes * 0.93), tensor_parallel=PARTED, **step(world_size=2)
    )


@pytest.mark.slow
def test_parted_layers_are_trained_on_their_ranks(plan: planner.ShardedPlan) -> None:
    assert plan.configuration.tensor_ranks == 2
    assert any(len(u.schedule.order) > len(plan.kinds[u.kind].graph.ops) for u in plan.units)
    found = planner.verify(example, plan, steps=1, tensor_parallel=PARTED)
    assert found.identical
    assert found.fits
    assert abs(found.prediction_error) < 0.01
    assert found.planned.peak_bytes < found.plain.peak_bytes
    assert "bit-identical" in str(found)


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    plan = planner.fit(decoder(), "1GB", **step(world_size=2))
    with pytest.raises(BadRequest, match="the plan is for 2 ranks: give a function"):
        planner.verify(decoder(), plan)
    with pytest.raises(BadRequest, match="are for plans for one device"):
        planner.verify(example, plan, optimizer="sgd")
    cards = planner.fit(decoder(), "8GB", **step(world_size=2, device="H100 SXM"))
    with pytest.raises(BadRequest, match="plan with device='cpu'"):
        planner.verify(example, cards)
