"""``loss_chunks=`` over several devices: the root is planned, trained on two ranks over gloo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import planner
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.plans import ShardedPlan
from planner.sharding.planned_root import planned_root
from planner.verification.ranks import RankMeasurement
from tests.planner.sharding.chunked_ranks import (
    Words,
    batch,
    captured,
    gpt,
    late,
    llama,
    loss_of,
    measured,
    own_loss,
    trial,
)
from tests.planner.sharding.ranks import FSDP, named, plan_of, run_ranks

LATE = "loss_chunks 8 {} when_read".format
SAID: dict[str, Any] = {
    "world_size": 2,
    "device": "cpu",
    "offload": False,
    "limits": planner.Limits(seconds=4.0),
}
DDP = Configuration(Strategy.DDP, 1, 2, micro_batch=2)
CASES: dict[str, tuple[Callable[[], nn.Module], Configuration, str, float]] = {
    "untied, forward first": (llama, FSDP, LATE("A"), 1e-6),
    "in turn": (llama, FSDP, LATE("B"), 1e-5),
    "bfloat16": (gpt, replace(FSDP, precision="bfloat16"), LATE("B"), 0.05),
    "micro-steps": (gpt, replace(FSDP, micro_batch=1, accumulation=2), LATE("B"), 1e-5),
    "DDP": (gpt, DDP, LATE("B"), 1e-5),
    "ZeRO-1": (llama, Configuration(Strategy.ZERO1, 2, micro_batch=2), LATE("A"), 1e-6),
    "autocast": (gpt, replace(DDP, precision="bfloat16"), LATE("B"), 0.05),
}
"""Model, configuration, variant of the root, and how far gradients may be from the whole's."""


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() != set()
    return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in one)


def ranks_of(job: Callable[..., dict[str, Any]], given: Any) -> list[dict[str, Any]]:
    found = run_ranks(functools.partial(job, **given), timeout_seconds=300)
    assert all(found), "a rank died"
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ShardedPlan:
    """One that only chunks fit, read back from its file."""
    made = planner.fit(gpt(), "3MB", inputs=batch(1), loss_chunks=8, logits="when_read", **SAID)
    assert made.fits
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    made.save(path)
    again = planner.load(path)
    assert again == made
    assert isinstance(again, ShardedPlan)
    return again


def check(plan: ShardedPlan, plain: RankMeasurement, chunked: RankMeasurement, most: float) -> None:
    predicted = plan.peak_bytes - plan.reserve_bytes
    assert chunked.complete
    assert abs(chunked.peak_bytes / predicted - 1) < 0.01
    assert chunked.peak_bytes < 0.75 * plain.peak_bytes
    assert chunked.losses == pytest.approx(plain.losses, rel=max(1e-6, most / 10))
    assert distance(chunked.gradients, plain.gradients) < most


def test_training_on_two_ranks(plan: ShardedPlan) -> None:
    trials = {"plain": trial(gpt, plan, planned=False), "chunked": trial(gpt, plan, planned=True)}
    for rank in ranks_of(measured, {"trials": trials}):
        check(plan, rank["plain"], rank["chunked"], 1e-5)
        assert rank["chunked"].peak_bytes <= plan.budget_bytes - plan.reserve_bytes


def test_the_root_by_itself(plan: ShardedPlan) -> None:
    """Without ranks: the program of the root calls units that nobody has sharded."""
    plain, model = gpt(), gpt()
    model.__class__ = planned_root(plan, model, on_mismatch="error")
    for rank in (0, 1):
        losses = [each(**batch(1, rank)).loss for each in (plain, model)]
        for each, loss in zip((plain, model), losses, strict=True):
            each.zero_grad()
            loss.backward()
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
        grads = [named({n: p.grad for n, p in each.named_parameters()}) for each in (plain, model)]
        assert distance(*reversed(grads)) < 1e-5
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    model.transformer.drop.p = 0.5  # type: ignore[union-attr, assignment]
    with pytest.raises(planner.PlanMismatch, match=r"attribute 'p' of .*drop.* is 0\.5"):
        model(**batch(1))


def test_what_the_plan_says(plan: ShardedPlan, tmp_path: Path) -> None:
    text = " ".join(str(plan).split())
    assert "head and loss are computed in 8 chunks of the tokens" in text
    assert "it takes micro-batches of this size alone" in text
    (note,) = (n for n in plan.export(tmp_path / "ds.json", "deepspeed") if "chunks" in n)
    assert "computes them whole" in note
    assert plan.export(tmp_path / "train.py", "fsdp2") == ()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_way_to_shard(case: str) -> None:
    make, configuration, rewrite, most = CASES[case]
    chunked = captured(make, configuration, rewrite)
    made = plan_of(chunked, configuration, (False,) * len(chunked.units))
    before = captured(make, configuration, "as_captured")
    whole = plan_of(before, configuration, (False,) * len(before.units))
    trials = {
        "plain": trial(make, whole, planned=False),
        "chunked": trial(make, made, planned=True),
    }
    for rank in ranks_of(measured, {"trials": trials}):
        check(made, rank["plain"], rank["chunked"], most)


@pytest.mark.slow
def test_logits_are_read_in_time_or_not_at_all() -> None:
    made = plan_of(captured(gpt, FSDP, LATE("B")), FSDP, (False, False))
    for rank in ranks_of(late, {"plan": made}):
        assert rank["same"]
        assert "read it before the backward pass" in rank["after backward"]
        assert "read after its next call" in rank["after another call"]


@pytest.mark.slow
def test_a_loss_of_the_caller(tmp_path: Path) -> None:
    given = batch(2)
    made = planner.fit(
        Words(), "1GB", inputs=given["input_ids"], loss=loss_of, targets=given["labels"],
        loss_chunks=4, global_batch=4, **SAID,
    )  # fmt: skip
    assert isinstance(made, ShardedPlan)
    with pytest.raises(planner.BadSpec, match=r"computes in chunks the loss that planner\.fit was"):
        made.export(tmp_path / "train.py", "fsdp2")
    assert not list(tmp_path.iterdir())
    for rank in ranks_of(own_loss, {"plan": made}):
        assert rank["losses"][1] == pytest.approx(rank["losses"][0], rel=1e-6)
        assert distance(*reversed(rank["gradients"])) < 1e-5
        assert tuple(rank["evaluated"]) == (5, 64, 3001)
        assert "planned for int64[2, 64]" in rank["smaller"]
        assert "computes no loss" in rank["no loss"]


def test_refused() -> None:
    given = {"inputs": batch(1), "loss_chunks": 4, **SAID}
    with pytest.raises(planner.BadRequest, match="returns 'logits' beside the loss"):
        planner.fit(gpt(), "1GB", **given)
    with pytest.raises(planner.BadRequest, match="over several devices is not for engine='indu"):
        planner.fit(gpt(), "1GB", engine="inductor", **given)
    with pytest.raises(planner.BadCluster, match="does not go with loss_chunks="):
        planner.fit(gpt(), "1GB", tensor_parallel="auto", **given)
    ids, said = batch(1)["input_ids"], {"loss_chunks": 4, **SAID}
    with pytest.raises(planner.BadRequest, match="pass it as loss="):
        planner.fit(Words(), "1GB", inputs=ids, **said)


@pytest.mark.slow
def test_a_plan_that_may_choose_keeps_what_fits(plan: ShardedPlan) -> None:
    with pytest.raises(planner.InfeasibleBudget) as error:
        planner.fit(gpt(), plan.budget_bytes, inputs=batch(1), **SAID)
    assert error.value.least_bytes > 1.3 * plan.budget_bytes
    made = planner.fit(
        gpt(), "1GB", inputs=batch(1), loss_chunks="auto", logits="when_read", **SAID
    )
    assert (made.step.rewrite, made.root) == ("as_captured", None)
