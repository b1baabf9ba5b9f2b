"""A compiled plan inside DistributedDataParallel: whole, with the gradients of Inductor's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.parallel import DistributedDataParallel

import planner
from benchmarks.stubs import stubs
from planner.progress import PlannerWarning
from tests.compiled import QUICK, Net, static_bytes, step
from tests.planner.running.collectives import steady_peak
from tests.planner.sharding.compiled_ranks import apart
from tests.planner.sharding.ranks import run_ranks

WIDTH, ROWS = 192, 256
DEPTH, BUCKET_MB = 3, 1


def wide(depth: int) -> Net:
    """Make a model whose gradients do not go into one bucket."""
    torch.manual_seed(0)
    return Net(WIDTH, depth)


def inputs(rank: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1 + rank))


def planned(budget: str | int, depth: int) -> planner.Plan:
    return planner.fit(wide(depth), budget, inputs=inputs(0), engine="inductor", **QUICK)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch._dynamo.reset()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/m", rank=0, world_size=1)
    with stubs():
        yield
    dist.destroy_process_group()
    torch._dynamo.reset()


@pytest.mark.usefixtures("alone")
def test_buckets_do_not_cut_a_planned_step() -> None:
    x, plan = inputs(0), planned("1GB", 1)
    model = DistributedDataParallel(plan.apply(wide(1)), bucket_cap_mb=BUCKET_MB)
    optimizer = torch.optim.SGD(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlannerWarning)
        for _ in range(2):
            step(model, x)
            optimizer.step()  # is told that a plan ran
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("alone")
def test_a_backend_says_that_buckets_cut_the_step() -> None:
    backend = planner.backend("1GB", **QUICK)
    model = DistributedDataParallel(
        torch.compile(wide(1), backend=backend, dynamic=False), bucket_cap_mb=BUCKET_MB
    )
    with pytest.raises(BackendCompilerFailed, match="optimize_ddp = False"):
        model(inputs(0))


def train(model: nn.Module, x: Tensor, rank: int) -> list[Tensor]:
    """Take three steps with masks of one's own; return the losses and all gradients."""
    torch.manual_seed(7 + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    found: list[Tensor] = []
    for _ in range(3):
        found.append(step(model, x))
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return found


def replicas(plan: planner.Plan, rank: int, folder: Path) -> dict[str, Any]:
    """Train by Inductor's default and by a plan, and measure the latter."""
    apart(rank, folder)
    wrapped: Callable[..., nn.Module] = partial(DistributedDataParallel, bucket_cap_mb=BUCKET_MB)
    x = inputs(rank)
    usual = train(wrapped(torch.compile(wide(DEPTH), dynamic=False)), x, rank)
    torch._dynamo.reset()
    model = wrapped(plan.apply(wide(DEPTH)))
    ours = train(model, x, rank)
    model.zero_grad(set_to_none=True)

    def steady() -> None:
        step(model, x)
        model.zero_grad(set_to_none=True)

    return {
        "equal": len(usual) == len(ours) and all(map(torch.equal, usual, ours)),
        "peak_bytes": static_bytes(model, x) + steady_peak(steady),
        "buckets_bytes": sum(p.nbytes for p in model.parameters()),
    }


@pytest.mark.slow
def test_replicas_train_as_with_inductors_default_in_every_bit() -> None:
    large = planned("1GB", DEPTH)
    fixed = large.graph.resident_bytes
    plan = planned(int(fixed + 0.7 * (large.plain_peak_bytes - fixed)), DEPTH)
    assert plan.recomputed
    for rank in run_ranks(partial(replicas, plan), timeout_seconds=600):
        assert rank is not None
        assert rank["equal"]
        # DDP makes its buckets when it is made: they are there before a step begins
        assert rank["peak_bytes"] <= plan.peak_bytes <= 1.05 * rank["peak_bytes"]
        assert rank["buckets_bytes"] > BUCKET_MB << 20
