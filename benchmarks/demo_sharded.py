"""Train GPT-2 on several processes within a budget for each that DDP breaks.

``torchrun --nproc-per-node 2 -m benchmarks.demo_sharded`` (over gloo, no GPU needed). The plan says
what to shard and what to recompute. The same model is then trained twice from the same seed:
sharded by torch alone (as the plan says, nothing recomputed) and as planned; every loss must agree
in every bit, and what the allocator recorded on every rank must be within the budget.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import planner
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.verification.ranks import RankMeasurement, ShardedTrial, measure_rank

SAMPLES, LENGTH, SHARE = 2, 256, 0.45  # per rank, tokens, of what DDP needs


def build(rank: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the model, the same on every rank, and this rank's part of the batch."""
    config = GPT2Config(
        vocab_size=1024,
        n_positions=LENGTH,
        n_layer=8,
        n_embd=256,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    draw = torch.Generator().manual_seed(rank)
    ids = torch.randint(config.vocab_size, (SAMPLES, LENGTH), generator=draw)
    return GPT2LMHeadModel(config).train(), {"input_ids": ids, "labels": ids}


def main() -> None:
    """Plan on rank 0, train everywhere, and exit with 1 unless every promise is kept."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    console = Console(quiet=rank != 0)
    ddp = Configuration(Strategy.DDP, 1, world, micro_batch=SAMPLES)
    usual = _measured(ShardedTrial(build, ddp, ()), rank)
    budget = int(SHARE * max(run.peak_bytes for run in usual))
    console.print(f"DDP holds {usual[0].peak_bytes:,} bytes on a rank; the budget is {budget:,}")

    box: list[planner.ShardedPlan | None] = [None]
    if rank == 0:
        model, inputs = build(0)
        found = planner.fit(
            model, budget, inputs=inputs, world_size=world, global_batch=world * SAMPLES
        )
        assert isinstance(found, planner.ShardedPlan)
        box = [found]
    dist.broadcast_object_list(box, src=0)
    (plan,) = box
    assert plan is not None
    console.print(str(plan), highlight=False)

    alone = _measured(ShardedTrial(build, plan.configuration, plan.units), rank)
    planned = _measured(ShardedTrial(build, plan.configuration, plan.units, plan), rank)
    table = Table("rank", "losses equal", "predicted, MB", "measured, MB", "budget, MB")
    for r, (a, b) in enumerate(zip(alone, planned, strict=True)):
        same = "yes" if a.losses == b.losses else "NO"
        numbers = (plan.peak_bytes - plan.reserve_bytes, b.peak_bytes, budget)
        table.add_row(str(r), same, *(f"{n / 1e6:,.2f}" for n in numbers))
    console.print(table)
    losses = all(a.losses == b.losses for a, b in zip(alone, planned, strict=True))
    kept = losses and all(b.peak_bytes <= budget for b in planned)
    console.print("every promise kept" if kept else "A PROMISE IS BROKEN")
    dist.destroy_process_group()
    sys.exit(0 if kept else 1)


def _measured(trial: ShardedTrial, rank: int) -> list[RankMeasurement]:
    """Train on this rank and tell the others."""
    here = measure_rank(trial, rank)
    found: list[RankMeasurement] = [here] * dist.get_world_size()
    dist.all_gather_object(found, here)
    return found


if __name__ == "__main__":
    main()
