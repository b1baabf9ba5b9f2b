"""What ranks are told differently ends ``apply`` on all of them, at once: four ranks as threads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

import planner
from tests.planner.running.threaded_ranks import on_four
from tests.planner.sharding.parted.decoders import along_sequence, decoder, step, styles


@pytest.fixture(scope="module")
def plan() -> planner.ShardedPlan:
    said = step(tensor_parallel=planner.TensorParallel(styles(), degrees=(2,)))
    made = planner.fit(decoder(), "1GB", **said)
    assert isinstance(made, planner.ShardedPlan)
    return made


def mesh_of(ranks: Any, *names: str) -> DeviceMesh:
    """Return a mesh whose groups are made by nobody: no collective is to run on it."""
    table = torch.tensor(ranks)
    return DeviceMesh("cpu", table, mesh_dim_names=names or None, _init_backend=False)


def shapes(rank: int) -> dict[str, Any]:
    table = [[0, 1], [2, 3]] if rank else [[0, 1, 2, 3]]
    return {"mesh": mesh_of(table, "shard", "tensor")}


def some(rank: int) -> dict[str, Any]:
    return {"mesh": mesh_of([[0, 1], [2, 3]], "shard", "tensor")} if rank % 2 else {}


def orders(rank: int) -> dict[str, Any]:
    table = [[2, 3], [0, 1]] if rank == 3 else [[0, 1], [2, 3]]
    return {"mesh": mesh_of(table, "shard", "tensor")}


def names(rank: int) -> dict[str, Any]:
    return {"mesh": mesh_of([[0, 1], [2, 3]], "dp" if rank else "data", "tp")}


def parts(rank: int) -> dict[str, Any]:
    """Some ranks are given a mesh of fewer than there are, of which one is not in its own."""
    mine = [[0, 1]] if rank in (0, 3) else [[0, 1], [2, 3]]
    return {"mesh": mesh_of(mine, "shard", "tensor")}


def words(rank: int) -> dict[str, Any]:
    return {"mesh": "cpu"} if rank == 1 else {}


def mismatches(rank: int) -> dict[str, Any]:
    return {"on_mismatch": "plain" if rank > 1 else "error"}


def typos(rank: int) -> dict[str, Any]:
    return {"on_mismatch": "eror"} if rank == 2 else {}


def other_styles(rank: int) -> dict[str, Any]:
    return {"tensor_parallel": along_sequence()} if rank == 2 else {}


SAID: dict[str, tuple[Callable[[int], dict[str, Any]], str, str]] = {
    "shapes": (shapes, r"ranks 0.*shape \(1, 4\)", "PlanMismatch"),
    "some": (some, "ranks 1, 3 have another mesh than rank 0.*the same mesh=", "PlanMismatch"),
    "orders": (orders, "ranks 3 have another mesh than rank 0", "PlanMismatch"),
    "names": (names, "ranks 1, 2, 3 have another mesh than rank 0", "PlanMismatch"),
    "parts": (parts, r"ranks 0, 3.*shape \(1, 2\)", "PlanMismatch"),
    "words": (words, "ranks 1.*mesh is 'cpu'; expected", "PlanMismatch"),
    "mismatches": (mismatches, "ranks 2, 3 have another on_mismatch than rank 0", "PlanMismatch"),
    "typos": (typos, "ranks 2.*on_mismatch is 'eror'", "ValueError"),
    "other styles": (other_styles, "ranks 2.*pass tensor_parallel= as it was", "PlanMismatch"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_ranks_are_told_differently(plan: planner.ShardedPlan, case: str) -> None:
    of, told, own = SAID[case]
    found = on_four(
        lambda rank: plan.apply(decoder(), **({"tensor_parallel": styles()} | of(rank)))
    )
    assert {type(error).__name__ for error in found.values()} == {own, "PlanMismatch"}
    others = [str(error) for error in found.values() if re.search("rank", str(error))]
    assert any(re.search(told, text) for text in others), others
