"""Tables of embeddings whose rows are looked up where they are, on ranks that really run."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.plans import ShardedPlan
from planner.sharding.row_wise import is_table
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.verification.ranks import RankMeasurement, ShardedTrial, run_ranks
from tests.planner.sharding.ranks import plan_of

ROWS, WIDTH, SAMPLES, HOTS = (20001, 3000, 501), 16, 64, 2


class Recommender(nn.Module):
    """A small DLRM: tables, what they have to do with each other, and a few linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {f"feature_{i}": nn.EmbeddingBag(n, WIDTH, mode="sum") for i, n in enumerate(ROWS)}
        )
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.top = nn.Sequential(nn.Linear(WIDTH + 16, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, ids: Tensor, label: Tensor) -> Tensor:
        x = self.bottom(dense)
        found = [table(i) for table, i in zip(self.tables.values(), ids.unbind(1), strict=True)]
        rows = torch.stack([x, *found], 1)
        made = self.top(torch.cat([x, (rows @ rows.mT).flatten(1)], 1))
        return F.binary_cross_entropy_with_logits(made.squeeze(1), label)


def build(rank: int) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model, generator = Recommender().train(), torch.Generator().manual_seed(rank)
    ids = [torch.randint(n, (SAMPLES, HOTS), generator=generator) for n in ROWS]
    return model, {
        "dense": torch.randn(SAMPLES, 13, generator=generator),
        "ids": torch.stack(ids, 1),
        "label": torch.rand(SAMPLES, generator=generator),
    }


@functools.cache
def captures() -> ModelCapture:
    model, inputs = build(0)
    return capture_units(model, inputs, device="cpu")


def plan_for(ranks: int) -> ShardedPlan:
    units = len(captures().units)
    return plan_of(captures(), Configuration(Strategy.FSDP, ranks, 1, SAMPLES), (False,) * units)


def measured(ranks: int) -> tuple[ShardedPlan, list[list[RankMeasurement]]]:
    plan = plan_for(ranks)
    trial = functools.partial(ShardedTrial, build, plan.configuration, plan.units)
    return plan, run_ranks([trial(plan, steps=2), trial(None, steps=2)])


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_planned_is_plain_and_both_are_one_process(ranks: int) -> None:
    plan, (planned, plain) = measured(ranks)
    alone, _ = build(0)
    loss = torch.stack([alone(**build(rank)[1]) for rank in range(ranks)]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for one, other in zip(planned, plain, strict=True):
        assert one.losses == other.losses
        for name in ("gradients", "parameters"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.keys() == dict(alone.named_parameters()).keys()
            assert all(torch.equal(left[n], right[n]) for n in right)
        for name, p in alone.named_parameters():
            assert p.grad is not None
            assert torch.allclose(one.gradients[name], p.grad, rtol=1e-4, atol=1e-7), name
        assert one.complete
        held = plan.peak_bytes - plan.reserve_bytes
        assert one.peak_bytes == pytest.approx(held, rel=0.02)
    first = [rank.losses[0] for rank in planned]
    assert sum(first) / ranks == pytest.approx(loss.item(), rel=1e-6)


def test_tables_are_gathered_where_that_is_less() -> None:
    """A table with fewer rows than a batch asks for is best had whole."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(30_000, 64), nn.Embedding(4, 64)])
            self.head = nn.Linear(64, 1)

        def forward(self, ids: Tensor) -> Tensor:
            x = torch.stack([t(i) for t, i in zip(self.tables, ids.unbind(1), strict=True)])
            return self.head(x.sum(0)).square().mean()

    found = capture_units(Dense(), torch.zeros(256, 2, dtype=torch.long), device="cpu")
    plan = plan_of(found, Configuration(Strategy.FSDP, 4, 1, 256), (False,) * 2)
    assert [(u.path, u.row_wise) for u in plan.units] == [("tables.0", True), ("tables.1", False)]
    assert "rows looked up where they are" in str(plan)
    assert "1 table of embeddings is not gathered" in str(plan)


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        (nn.Embedding(8, 2, sparse=True), torch.zeros(4, dtype=torch.long)),
        (nn.Embedding(8, 2, padding_idx=0), torch.zeros(4, dtype=torch.long)),
        (nn.EmbeddingBag(8, 2, mode="mean"), torch.zeros(4, 2, dtype=torch.long)),
        (nn.EmbeddingBag(8, 2, mode="sum"), torch.zeros(4, dtype=torch.long)),
        (nn.Linear(8, 2), torch.zeros(4, 8)),
    ],
)
def test_what_cannot_be_looked_up_row_by_row(table: nn.Module, ids: Tensor) -> None:
    assert not is_table(table, arguments_of(ids))
