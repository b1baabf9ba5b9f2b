"""What plans need through an allocator: ``python -m benchmarks.allocator [NAME ...]``.

Models on meta for an A100 at sizes that fill a card, each planned at shares of its activations: by
tensors' bytes, and within the same budget for what PyTorch's caching allocator needs, with its
default segments and with expandable ones. Where all activations are to stay, the budget is 2% above
what the tensors of the plain step take. Two models come at four times their batch, too: pages of
expandable segments have 20 MiB, which weighs less there. Every need is found by replaying three
training steps. The solver stops by the clock; on a busy machine give it more (``--seconds``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

import planner
from benchmarks.models import unets
from benchmarks.record import record, show
from planner.graphs import plain_schedule, simulate
from planner.graphs.allocation import needs
from planner.graphs.hardware.allocators import EXPANDABLE, SEGMENTS
from planner.solvers import Limits, solve

DEVICE = "A100-40GB"
ABOVE_PLAIN = 0.02


@dataclass(frozen=True)
class Row:
    """A plan; fractions of needs are above the peak of its tensors, overheads of the plain step."""

    model: str
    share_fraction: float
    allocator: str
    budget_bytes: int
    by_tensors_needs_fraction: float
    by_tensors_overhead_fraction: float
    fits: bool
    needs_fraction: float
    of_budget_fraction: float
    overhead_fraction: float
    bound_fraction: float
    seconds: float
    processor_seconds: float


def models() -> Iterator[tuple[str, nn.Module, dict[str, torch.Tensor], tuple[float, ...]]]:
    """Build each model on meta; yield it with its inputs and shares."""
    with torch.device("meta"):
        ids = torch.empty(8, 1024, dtype=torch.long)
        config = hf.GPT2Config(use_cache=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        yield "gpt2", hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}, (1, 0.5)
        net = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000))
        unet = unets.UNet((64, 128, 256, 512, 1024), labels=8)
        for times, shares in ((1, (1, 0.6, 0.35)), (4, (0.35,))):
            pixels = torch.empty(64 * times, 3, 224, 224)
            labels = torch.empty(64 * times, dtype=torch.long)
            name = "resnet50" if times == 1 else "resnet50 x 4"
            yield name, net, {"pixel_values": pixels, "labels": labels}, shares
        for times, shares in ((1, (1, 0.6, 0.4)), (4, (0.4,))):
            pixels = torch.empty(8 * times, 3, 256, 256)
            labels = torch.empty(8 * times, 256, 256, dtype=torch.long)
            name = "unet" if times == 1 else "unet x 4"
            yield name, unet, {"pixels": pixels, "labels": labels}, shares
        ids = torch.empty(4, 2048, dtype=torch.long)
        small = hf.LlamaConfig(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=32000, use_cache=False,
        )  # fmt: skip
        llama = hf.LlamaForCausalLM(small).to(torch.bfloat16)
        yield "llama 1.2B", llama, {"input_ids": ids, "labels": ids}, (1, 0.5, 0.3)


def rows(names: Sequence[str], limits: Limits) -> Iterator[Row]:
    """Plan every model named, or all, at every share for either setting."""
    for name, model, inputs, shares in models():
        if names and name not in names:
            continue
        said: dict[str, Any] = {"inputs": inputs, "device": DEVICE, "progress": "off"}
        said["limits"] = limits
        plain = planner.fit(model.train(), "2TB", **said)
        graph, reserve = plain.graph, plain.hardware.reserve_bytes if plain.hardware else 0
        for share in shares:
            resident = graph.resident_bytes
            budget = int(resident + share * (plain.plain_peak_bytes - resident))
            schedule = plain_schedule(graph)
            if share < 1:
                schedule = solve(graph, budget, limits=limits).schedule or schedule
            trace = simulate(graph, schedule)
            if share == 1:
                budget += int(ABOVE_PLAIN * (budget - reserve))
            for allocator in (SEGMENTS, EXPANDABLE):
                begun, before = time.perf_counter(), time.process_time()
                found = needs(graph, schedule, expandable=allocator == EXPANDABLE)
                by_tensors = (found.needed_bytes - trace.peak_bytes) / (trace.peak_bytes - reserve)
                try:
                    plan = planner.fit(model, budget, allocator=allocator, **said)
                except planner.InfeasibleBudget:
                    continue
                assert plan.needs is not None
                above = plan.needs.needed_bytes - plan.peak_bytes
                yield Row(
                    name, share, allocator, budget, by_tensors,
                    trace.seconds / graph.seconds - 1, plan.fits,
                    above / (plan.peak_bytes - reserve), plan.needs.needed_bytes / budget,
                    plan.overhead, plan.bound_overhead, time.perf_counter() - begun,
                    time.process_time() - before,
                )  # fmt: skip


def main() -> None:
    """Print the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="models; all if left out")
    parser.add_argument("--seconds", type=float, default=Limits().seconds, help="for each plan")
    asked = parser.parse_args()
    found = list(rows(asked.names, Limits(seconds=asked.seconds)))
    show(f"Needs through the allocator, {DEVICE}", found)
    print(record("allocator", found))


if __name__ == "__main__":
    main()
