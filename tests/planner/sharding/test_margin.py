"""What is kept free of a budget on accelerators, and who may say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import ShardedPlan
from planner.graphs import Graph, Op, Phase, Value, plain_schedule
from planner.graphs.allocation import needs
from planner.graphs.simulate import simulate
from planner.request import Request
from planner.sharding import explored
from planner.sharding.margin import FRAGMENTS_SHARE, NCCL_BYTES, Margin, margin_of, widened
from tests.asked import request
from tests.planner.sharding.blocks import Decoder, batch

BUDGET = 4 * 10**9


def asked(device: str = "A100-40GB", **said: Any) -> Request:
    return request(nn.Linear(2, 2), inputs=torch.zeros(2, 2), device=device, **said)


def test_a_cpu_keeps_nothing_free_and_an_accelerator_some() -> None:
    assert margin_of(asked("cpu"), BUDGET) == Margin()
    assert margin_of(asked(), BUDGET) == Margin(NCCL_BYTES, int(BUDGET * FRAGMENTS_SHARE))


@pytest.mark.parametrize("reserve", [0, "1GB"])
def test_reserve_takes_its_place(reserve: str | int) -> None:
    assert margin_of(asked(reserve=reserve), BUDGET) == Margin()


def test_a_schedule_that_fragments_gets_more() -> None:
    """Blocks that grow leave holes that none of the later ones fits in."""
    sizes = [(11 + 3 * i) * 2**20 for i in range(12)]
    ops = tuple(
        Op(f"f{i}", "f", (i - 1,) if i else (), (i,), 1.0, phase=Phase.FORWARD)
        for i in range(len(sizes))
    )
    graph = Graph(ops, tuple(Value(f"v{i}", s) for i, s in enumerate(sizes)), frozenset())
    schedule = plain_schedule(graph)
    lacking = needs(graph, schedule).needed_bytes - simulate(graph, schedule).peak_bytes
    assert lacking > 0
    narrow = Margin(NCCL_BYTES, 1)
    assert widened(narrow, asked(), graph, schedule) == replace(narrow, fragments_bytes=lacking)
    wide = Margin(NCCL_BYTES, lacking + 1)
    assert widened(wide, asked(), graph, schedule) == wide
    assert widened(Margin(), asked(reserve=0), graph, schedule) == Margin()


def fitted(**said: Any) -> ShardedPlan:
    with torch.device("meta"):
        model = Decoder(2)
    plan = planner.fit(
        model, BUDGET, inputs=batch(), device="A100-40GB", world_size=2, progress="off", **said
    )
    assert isinstance(plan, ShardedPlan)
    return plan


def test_it_is_planned_again_until_the_allocator_has_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tight, lacking = fitted(), 10**9

    def more(margin: Margin, *_: object) -> Margin:
        return replace(margin, fragments_bytes=max(margin.fragments_bytes, lacking))

    monkeypatch.setattr(explored, "widened", more)
    plan = fitted()
    assert plan.margin_bytes >= NCCL_BYTES + lacking > tight.margin_bytes
    assert plan.peak_bytes + plan.margin_bytes <= plan.budget_bytes
    lacking = BUDGET
    with pytest.raises(planner.InfeasibleBudget, match="kept free for NCCL and the allocator"):
        fitted()


def test_the_verdict_names_what_is_kept_free() -> None:
    plan = fitted()
    kept = NCCL_BYTES + int(BUDGET * FRAGMENTS_SHARE)
    assert (plan.margin_bytes, plan.nccl_bytes) == (kept, NCCL_BYTES)
    assert plan.peak_bytes + plan.margin_bytes <= plan.budget_bytes
    verdict = " ".join(str(plan).split("\nTime")[0].split())
    assert "1.81 GB of which are kept free: 200 MB for the allocator, 1.61 GB for NCCL" in verdict
    assert "kept free: nothing but" in " ".join(str(fitted(reserve=0)).split())
