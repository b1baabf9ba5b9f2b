"""A model that is parallelized on a mesh: planned without its ranks, and run on two."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import planner
from planner.graphs import Phase
from tests.planner.running.parallel import CASES, planned, run_two, sequence_parallel, step_of


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks of which one is here, and the other is nowhere."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def plans(mesh: DeviceMesh) -> dict[tuple[str, str], planner.Plan]:
    return {case: planned(*case, mesh) for case in CASES}


@pytest.fixture(scope="module")
def ranks(
    plans: dict[tuple[str, str], planner.Plan], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    for (name, case), plan in plans.items():
        plan.save(folder / f"{name}, {case}.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return run_two(folder, port)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_compute_what_they_do_plain(
    ranks: list[dict[str, Any]],
    plans: dict[tuple[str, str], planner.Plan],
    case: tuple[str, str],
) -> None:
    """Three steps of AdamW: losses, gradients and shards, bit for bit."""
    order = plans[case].schedule.order
    assert len(order) > len(set(order)), "something is made again"
    for found in ranks:
        assert found["cases"][case]["equal"]
        assert found["cases"][case]["names"]
        assert found["cases"][case]["placed"], "a state_dict is as before"


def test_collectives_are_made_again(plans: dict[tuple[str, str], planner.Plan]) -> None:
    for name, case in CASES:
        plan = plans[name, case]
        order = plan.schedule.order
        again = [plan.graph.ops[i] for i in set(order) if order.count(i) > 1]
        sent = [op for op in again if op.phase is Phase.COMMUNICATION]
        assert sent or case == "less", name


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_memory_is_what_was_planned(
    ranks: list[dict[str, Any]], plans: dict[tuple[str, str], planner.Plan], name: str
) -> None:
    plan = plans[name, "less"]
    assert plan.peak_bytes < plan.plain_peak_bytes
    for found in ranks:
        measured = found["cases"][name, "less"]["measured_bytes"]
        assert measured <= plan.budget_bytes
        assert plan.peak_bytes == pytest.approx(measured, rel=0.01)


def test_collectives_hold_what_they_are_priced_at(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for kind, (held, priced) in found["collectives"].items():
            assert priced == pytest.approx(held, rel=1e-4), kind


def test_ranks_run_one_plan(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "ranks 1 have another plan than rank 0" in found["refused"]


def test_a_sequence_that_ranks_do_not_share_evenly_is_refused(mesh: DeviceMesh) -> None:
    """The ranks of such a step have other sizes, and what one sends the other would not take."""
    model, inputs = sequence_parallel(mesh), step_of("sequence parallel")["inputs"]
    odd = {name: ids[:, :63] for name, ids in inputs.items()}
    with pytest.raises(planner.CaptureError, match=r"\[16, 63, 64\].*parts of different sizes"):
        planner.fit(model, "1GB", inputs=odd)
