"""Keeping, recomputing and moving values to the host: ``python -m benchmarks.offload``.

Models are captured on meta for a card of the table, and planned within five budgets between the
least that recomputation alone is known to reach and what the plain step holds: extra time as a
fraction of the plain step of recomputation alone, of moving alone, of moving all that the backward
pass reads as people do today (``torch.autograd.graph.save_on_cpu``: copies that the device waits
for), of per-block checkpointing with blocks' inputs on the host, and of a plan that chooses, with
what is proved of it. Bytes are those of tensors; times are
estimates, and links reach what ``graphs.hardware.host_tier`` assumes. Nothing is run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.models.unets import UNet
from benchmarks.record import record, show
from planner.graphs import (
    Action,
    Clock,
    Graph,
    plain_schedule,
    simulate,
)
from planner.graphs.hardware.devices import device
from planner.graphs.hardware.host_tier import HostTier, tier_of
from planner.request import request_of
from planner.solvers import Limits, minimum_budget, solve
from planner.solvers.baselines.moved_by_hand import admitted
from planner.solvers.offload import solve_with_host
from planner.step_variants import captured_step

CARDS = ("A100-80GB", "H100-SXM", "GH200-96GB", "RTX-4090")
"""PCIe 4, PCIe 5, NVLink-C2C, and PCIe 4 beside less memory."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
LIMITS = Limits(seconds=15.0)


@dataclass(frozen=True)
class Row:
    """Extra times are fractions of the plain step; -1 is for what does not fit.

    ``as_usual_peak_bytes`` is what moving everything holds, whatever the budget; ``blocks_`` is
    per-block checkpointing of every block with blocks' inputs on the host, whose least peak is
    ``blocks_least_bytes``.
    """

    model: str
    card: str
    share: float
    budget_bytes: int
    plain_bytes: int
    recomputing_fraction: float
    moving_fraction: float
    as_usual_fraction: float
    as_usual_peak_bytes: int
    blocks_fraction: float
    blocks_least_bytes: int
    ours_fraction: float
    bound_fraction: float
    recomputing_bound_fraction: float
    moved_bytes: int
    to_host_busy_fraction: float
    from_host_busy_fraction: float
    solve_seconds: float


class LossAlone(nn.Module):
    """A language model of transformers that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the loss of one call."""
        loss: Tensor = self.model(input_ids=input_ids, labels=input_ids).loss
        return loss


def gpt2() -> tuple[nn.Module, Tensor]:
    """Return GPT-2 (124M, float32) and 8 x 1,024 tokens."""
    config = transformers.GPT2Config(use_cache=False, loss_type="ForCausalLMLoss")
    return LossAlone(transformers.GPT2LMHeadModel(config)), torch.zeros(8, 1024, dtype=torch.long)


def llama_8b() -> tuple[nn.Module, Tensor]:
    """Return Llama-3-8B in bfloat16 and 2 x 4,096 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, use_cache=False,
    )  # fmt: skip
    made = LossAlone(transformers.LlamaForCausalLM(config).bfloat16())
    return made, torch.zeros(2, 4096, dtype=torch.long)


class Mean(nn.Module):
    """A model of pictures, with the mean square of what it returns first for a loss."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *given: Tensor) -> Tensor:
        """Return the loss of one call."""
        made = self.body(*given)[0]
        loss: Tensor = made.square().mean()
        return loss


def vit() -> tuple[nn.Module, Tensor]:
    """Return ViT-L/16 (float32) and 64 pictures."""
    config = transformers.ViTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return Mean(transformers.ViTModel(config)), torch.zeros(64, 3, 224, 224)


def unet() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a U-Net of 31 million parameters (float32) and 16 pictures of 512 x 512."""
    labels = torch.zeros(16, 512, 512, dtype=torch.long)
    return UNet((64, 128, 256, 512, 1024), labels=8), (torch.zeros(16, 3, 512, 512), labels)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gpt2": gpt2,
    "llama-3-8b": llama_8b,
    "vit-l": vit,
    "unet": unet,
}


def rows_of(name: str, card: str, graph: Graph, tier: HostTier) -> list[Row]:
    """Plan a captured step within each budget.

    Args:
        name, card: what the rows say.
        graph: the step.
        tier: where its values may go.
    """
    plain = simulate(graph, plain_schedule(graph))
    [(usual_bytes, usual_seconds, _)] = admitted(
        graph, "offload_all", replace(tier, limit_bytes=None)
    )
    blocks = admitted(graph, "checkpoint_offload", tier)
    known = minimum_budget(graph, limits=LIMITS)
    least = known.least_bytes

    def extra(seconds: float | None) -> float:
        return -1.0 if seconds is None else seconds / plain.seconds - 1

    rows: list[Row] = []
    for share in SHARES:
        budget = int(least + share * (plain.peak_bytes - least))
        alone = solve(graph, budget, limits=LIMITS)
        if alone.schedule is None:  # what holds least fits every budget here
            alone = replace(alone, schedule=known.schedule)
        start = time.perf_counter()
        found = solve_with_host(
            graph, budget, tier, limits=LIMITS, alone=alone, tightest=known.schedule
        )
        spent = time.perf_counter() - start
        schedule = found.solution.schedule
        assert schedule is not None, "recomputation alone is known to fit"
        trace = simulate(graph, schedule, link_bytes_per_second=tier.rates)
        moved = [s.index for s in schedule.steps if s.action is Action.OFFLOAD]
        busy = [
            trace.busy_seconds.get(clock, 0.0) / trace.seconds
            for clock in (Clock.TO_HOST, Clock.FROM_HOST)
        ]
        rows.append(
            Row(
                model=name,
                card=card,
                share=share,
                budget_bytes=budget,
                plain_bytes=plain.peak_bytes,
                recomputing_fraction=extra(found.recomputing_seconds),
                moving_fraction=extra(found.moving_seconds),
                as_usual_fraction=extra(usual_seconds if usual_bytes <= budget else None),
                as_usual_peak_bytes=usual_bytes,
                blocks_fraction=extra(min((t for b, t, _ in blocks if b <= budget), default=None)),
                blocks_least_bytes=min((b for b, _, _ in blocks), default=-1),
                ours_fraction=extra(trace.seconds),
                bound_fraction=extra(found.solution.bound_seconds),
                recomputing_bound_fraction=extra(alone.bound_seconds),
                moved_bytes=sum(graph.values[v].size_bytes for v in moved),
                to_host_busy_fraction=busy[0],
                from_host_busy_fraction=busy[1],
                solve_seconds=spent,
            )
        )
    return rows


def main(names: list[str]) -> None:
    """Plan every model for every card, print a table and write a file.

    Args:
        names: of models; none are all of them.
    """
    rows: list[Row] = []
    for name in names or MODELS:
        with torch.device("meta"):
            model, inputs = MODELS[name]()
            model = model.train()
        for card in CARDS:
            said = {"inputs": inputs, "device": card, "progress": "off"}
            graph = captured_step(request_of(model, said)).graph
            rows += rows_of(name, card, graph, tier_of(device(card)))
    show("Keep, recompute or move", rows)
    print(record("offload", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
