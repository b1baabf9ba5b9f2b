"""Tensor parallelism times FSDP2 as a plan applies it, on four ranks, against torch's own means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import planner
from tests.planner.sharding.parted.four_ranks import CASES, planned, run_four

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plans() -> dict[str, planner.ShardedPlan]:
    return {case: planned(case) for case in CASES}


@pytest.fixture(scope="module")
def ranks(
    plans: dict[str, planner.ShardedPlan], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    for case, plan in plans.items():
        plan.save(folder / f"{case}.json")
    planned("declared", "1GB").save(folder / "other.json")
    return run_four(folder)


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_shards_are_the_same_in_every_bit(
    ranks: list[dict[str, Any]], plans: dict[str, planner.ShardedPlan], case: str
) -> None:
    plan = plans[case]
    assert plan.configuration.tensor_ranks == 2
    assert plan.configuration.data_ranks == 2
    assert any(len(u.schedule.order) > len(plan.kinds[u.kind].graph.ops) for u in plan.units)
    for found in ranks:
        assert len(found[case]["equal"]) > 100
        assert all(found[case]["equal"])


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_was_planned(
    ranks: list[dict[str, Any]], plans: dict[str, planner.ShardedPlan], case: str
) -> None:
    plan = plans[case]
    most = max(found[case]["peak_bytes"] for found in ranks)
    assert plan.peak_bytes - plan.reserve_bytes == pytest.approx(most, rel=0.01)
    assert most <= plan.budget_bytes


def test_another_mesh_and_other_plans_are_refused_on_every_rank(
    ranks: list[dict[str, Any]],
) -> None:
    for found in ranks:
        assert (
            "shape (1, 4), the plan is for (2, 2), 2 to shard, 2 to tensor" in found["other mesh"]
        )
        assert "ranks 3 have another plan than rank 0" in found["other plans"]


def test_no_rank_waits_for_one_that_refuses(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert "ranks 1 have another model than rank 0" in found["other model"]
        assert "train/eval mode of module" in found["other mode"]
        assert ("cannot be applied on ranks 3" in found["other mode"]) == (rank != 3)
        assert "holds ranks [0, 2], which are not neighbours" in found["apart"]
