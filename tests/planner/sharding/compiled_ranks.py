"""A decoder whose units are compiled, trained on two ranks by Inductor's default and by plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import planner
from planner.graphs.torch_api.inductor import compiler
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.solvers import Limits
from planner.verification.ranks import RankMeasurement, ShardedTrial, measure_rank
from tests.planner.sharding.blocks import Decoder, batch, decoder

LAYERS, SAMPLES = 2, 4
SAID: dict[str, Any] = {
    "world_size": 2,
    "engine": "inductor",
    "device": "cpu",
    "global_batch": 2 * SAMPLES,
    "offload": False,
    "precisions": ["float32"],
    "limits": Limits(seconds=5),
    "progress": "off",
}


def compiled_decoder() -> Decoder:
    return decoder(LAYERS, dropout=0.1, tied=False)


def made(rank: int) -> tuple[Decoder, torch.Tensor]:
    """Return what a rank trains."""
    return compiled_decoder(), batch(rank, SAMPLES)


def planned(budget: str | int, **said: Any) -> planner.ShardedPlan:
    """Plan the decoder's step."""
    found = planner.fit(compiled_decoder(), budget, inputs=batch(0, SAMPLES), **SAID | said)
    assert isinstance(found, planner.ShardedPlan)
    return found


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the graphs that are compiled under a plan meanwhile."""
    counts: list[int] = []
    own: Callable[..., Any] = compiler._compiled

    def counting(*args: Any, **options: Any) -> Any:
        counts.append(1)
        return own(*args, **options)

    with mock.patch.object(compiler, "_compiled", counting):
        yield counts


def apart(rank: int, folder: Path) -> None:
    """Let this rank keep what it compiles to itself: two that write one file read it half written.

    Args:
        rank, folder: this process's, and of all of them.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"inductor_{rank}")


def trained(plan: ShardedStepPlan, rank: int, folder: Path) -> dict[str, RankMeasurement | int]:
    """Train by Inductor's default and by a plan; return both, and what was compiled for the plan.

    Args:
        plan: whose configuration both have.
        rank, folder: this process's, and of all of them.
    """
    apart(rank, folder)
    shared = (made, plan.configuration, plan.units)
    torch._dynamo.reset()
    usual = measure_rank(ShardedTrial(*shared, steps=2, engine="inductor"), rank)
    torch._dynamo.reset()
    with counted() as counts:
        ours = measure_rank(ShardedTrial(*shared, plan=plan, steps=2), rank)
    return {"usual": usual, "ours": ours, "compiled": len(counts)}
