"""Sharded training that really runs: two ranks over gloo against plain torch and one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.errors import PlanMismatch
from planner.sharding.apply_sharded import apply
from planner.sharding.wrapped.unit_captures import capture_units
from tests.planner.sharding.blocks import batch, decoder
from tests.planner.sharding.ranks import (
    CASES,
    FSDP,
    LAYERS,
    die,
    fall_silent,
    four,
    plan_of,
    run_ranks,
    scenarios,
    train,
)

STEPS = 5


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    ranks = run_ranks(scenarios)
    assert all(ranks), "a rank died"
    return ranks  # type: ignore[return-value]


@pytest.fixture(scope="module")
def on_four() -> list[dict[str, Any]]:
    ranks = run_ranks(four, world=4)
    assert all(ranks), "a rank died"
    return ranks  # type: ignore[return-value]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Train on both ranks' batches in one process."""
    model = decoder(LAYERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train(model, optimizer, STEPS, lambda: (model(batch(0)) + model(batch(1))) / 2)


@pytest.mark.parametrize("case", CASES)
def test_planned_training_is_plain_training_bit_for_bit(
    found: list[dict[str, Any]], case: str
) -> None:
    for rank in found:
        assert_identical(rank[f"{case} plain"], rank[f"{case} planned"])


@pytest.mark.parametrize("case", ["offload", "partly"])
def test_where_states_are_changes_no_bit(found: list[dict[str, Any]], case: str) -> None:
    for rank in found:
        assert_identical(rank["stage 3 plain"], rank[f"{case} planned"])


@pytest.mark.parametrize("case", CASES)
def test_units_take_every_smaller_micro_batch(found: list[dict[str, Any]], case: str) -> None:
    for rank in found:
        assert_identical(rank[f"{case} plain smaller"], rank[f"{case} planned smaller"])


def assert_identical(plain: dict[str, Any], planned: dict[str, Any]) -> None:
    assert plain["losses"] == planned["losses"]
    for what in ("gradients", "last gradients", "parameters"):
        assert plain[what].keys() == planned[what].keys() != set()
        for name, tensor in plain[what].items():
            assert torch.equal(tensor, planned[what][name]), f"{what} of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["flat", "hybrid"])
def test_four_ranks_train_as_plain_fsdp_does(case: str, on_four: list[dict[str, Any]]) -> None:
    for rank in on_four:
        assert_identical(rank[f"{case} plain"], rank[f"{case} planned"])


@pytest.mark.parametrize("case", ["ddp", "zero1", "mixed"])
@pytest.mark.parametrize("what", ["gradients", "last gradients", "parameters"])
def test_sharded_training_is_that_of_one_process(
    found: list[dict[str, Any]], alone: dict[str, Any], case: str, what: str
) -> None:
    for rank in found:
        for name, tensor in rank[f"{case} planned"][what].items():
            wanted = alone[what][name]
            difference = (tensor - wanted).abs().max() / wanted.abs().max()
            assert difference <= 1e-5, f"{what} of {name}: {difference:.2g}"


@pytest.mark.parametrize("case", ["ddp", "zero1", "mixed"])
def test_losses_are_those_of_one_process(
    found: list[dict[str, Any]], alone: dict[str, Any], case: str
) -> None:
    ranks = zip(*(rank[f"{case} planned"]["losses"] for rank in found), strict=True)
    assert [sum(both) / 2 for both in ranks] == pytest.approx(alone["losses"], rel=1e-5)


def test_ranks_draw_dropout_of_their_own(found: list[dict[str, Any]]) -> None:
    first, second = (rank["stage 3 planned"]["losses"] for rank in found)
    assert first != second


def test_checkpoints_and_names_are_those_of_plain_fsdp(found: list[dict[str, Any]]) -> None:
    assert all(rank["checkpoint"] for rank in found)
    assert found[0]["names"] == sorted(decoder(LAYERS).state_dict())


def test_evaluation_takes_any_shape_and_training_none_that_is_larger(
    found: list[dict[str, Any]],
) -> None:
    assert found[0]["evaluated"] > 0
    assert "argument x has 3 rows, the plan serves up to 2" in found[0]["other shape"]


def test_a_plan_for_autocast_is_not_run_without_it(found: list[dict[str, Any]]) -> None:
    assert "autocast is off, planned for bfloat16" in found[0]["without autocast"]


def test_a_plan_for_other_ranks_or_another_model_is_refused(found: list[dict[str, Any]]) -> None:
    assert "the plan is for 4 ranks, the process group has 2" in found[0]["other world"]
    assert found[0]["other mesh"] == "the mesh has shape (1, 2), the plan is for (2,)"
    assert "unit 'h.0': Block does not do what the plan was made for" in found[0]["other model"]


def test_without_a_process_group_the_message_says_how_to_start() -> None:
    plan = plan_of(capture_units(decoder(LAYERS), batch()), FSDP, (False, False))
    with pytest.raises(PlanMismatch, match="start with torchrun"):
        apply(plan, decoder(LAYERS))


def test_a_rank_that_dies_ends_the_others_with_an_error() -> None:
    survivor, dead = run_ranks(die)
    assert dead is None
    assert survivor is not None
    assert survivor["error"]
    assert survivor["seconds"] < 30


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_others_after_the_timeout() -> None:
    survivor, _ = run_ranks(fall_silent, timeout_seconds=3)
    assert survivor is not None
    assert survivor["error"]
    assert 2 < survivor["seconds"] < 7.5
