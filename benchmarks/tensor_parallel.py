"""Tensor parallelism as a choice: ``python -m benchmarks.tensor_parallel [MODEL[@SEQUENCE] ...]``.

Llama 3 on meta, one sample for each H100, in bfloat16 with float32 master weights: what the search
over all degrees chooses, its gap and its seconds, beside every fixed recipe (a stage of ZeRO and a
way to checkpoint) with layers in 1, 2, 4 and 8 parts, with and without sequence parallelism, states
sharded over all ranks, one sample at a time. The word ``searched`` among the arguments
leaves the recipes out; ``clock=600`` gives the solver so many seconds instead of 60, for a machine
that others share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.record import record, show
from planner.graphs.hardware.cluster import Cluster
from planner.make_cluster import make_cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.request import Request, request_of
from planner.sharding import strategies  # noqa: F401 (it enters them)
from planner.sharding.captures import Captures
from planner.sharding.configurations import Parted, configurations
from planner.sharding.explored import explored
from planner.sharding.margin import margin_of, widened
from planner.sharding.parted.ways import ways_of
from planner.sharding.pricing import Planned, price_recipes
from planner.sharding.space import SearchResult
from planner.solvers import Limits
from planner.tensor_parallel import TensorParallel

DEVICE, BUDGET = "H100 SXM", "80GB"
SEQUENCES = (4096, 8192, 16384)
SECONDS = 60.0
"""What the solver is given, if nothing else is said."""


@dataclass(frozen=True)
class Size:
    """A model's sizes, and on how many devices it is trained."""

    layers: int
    width: int
    inner: int
    heads: int
    devices: int


SIZES = {
    "8B": Size(32, 4096, 14336, 32, 8),
    "70B": Size(80, 8192, 28672, 64, 64),
    "405B": Size(126, 16384, 53248, 128, 512),
}


@dataclass(frozen=True)
class Row:
    """What was chosen among all, or a fixed recipe.

    ``cpu_seconds`` are the planning process's own: what it takes where nothing else runs."""

    model: str
    devices: int
    sequence: int
    layers_parted: str
    configuration: str
    peak_bytes: int | None
    milliseconds_a_sample: float | None
    gap_fraction: float | None
    fits: bool
    finished: bool | None
    planning_seconds: float | None
    cpu_seconds: float | None


def llama(size: Size) -> nn.Module:
    """Build a Llama 3 on meta: nothing is allocated."""
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=128256,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=8,
        max_position_embeddings=max(SEQUENCES),
        use_cache=False,
    )
    with torch.device("meta"):
        model: nn.Module = hf.LlamaForCausalLM(config).train()
    return model


def request_for(
    name: str, sequence: int, said: Callable[[str], None], seconds: float = SECONDS
) -> Request:
    """Say what is planned, as ``planner.fit`` would be told."""
    ids = torch.empty(1, sequence, dtype=torch.long, device="meta")
    options: dict[str, Any] = {
        "inputs": {"input_ids": ids, "labels": ids},
        "loss": lambda output: output.loss,
        "device": DEVICE,
        "world_size": SIZES[name].devices,
        "precisions": ("bfloat16",),
        "offload": False,
        "tensor_parallel": "auto",
        "limits": Limits(seconds=seconds),
        "progress": said,
    }
    return request_of(llama(SIZES[name]), options)


def rows(name: str, sequence: int, *, recipes: bool, seconds: float) -> Iterator[Row]:
    """Search all degrees, then price what is fixed."""
    start = time.perf_counter()

    def said(sentence: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {sentence}", file=sys.stderr, flush=True)

    request = request_for(name, sequence, said, seconds)
    cluster = make_cluster(request.hardware, request.world_size)
    shop = Captures(request, ways_of(request.model, TensorParallel(), cluster))
    budget = request.budget_bytes(BUDGET)
    before = time.process_time()
    found = _searched(shop, cluster, budget)
    yield _row(name, sequence, found, time.perf_counter() - start, time.process_time() - before)
    for way in shop.ways.styles if recipes else ():
        yield from _recipes(name, sequence, shop, way, budget)


def _searched(shop: Captures, cluster: Cluster, budget: int) -> SearchResult:
    among = [
        c
        for way in shop.ways.styles
        for c in configurations(
            cluster.world_size,
            cluster.world_size,
            devices_per_node=cluster.devices_per_node,
            precisions=shop.request.precisions,
            offload=False,
            parted=way,
        )
    ]
    return explored(shop.request, shop.space(cluster, among), budget)[0]


def _row(name: str, sequence: int, found: SearchResult, seconds: float, cpu: float) -> Row:
    best, devices = found.best, SIZES[name].devices
    seen = best or found.closest
    return Row(
        model=f"Llama 3 {name}",
        devices=devices,
        sequence=sequence,
        layers_parted=f"searched: {seen.configuration.tensor_parallel or 'none'}",
        configuration=str(seen.configuration),
        peak_bytes=seen.peak_bytes,
        milliseconds_a_sample=best.seconds / devices * 1e3 if best else None,
        gap_fraction=max(0.0, 1 - found.bound_seconds / best.seconds) if best else None,
        fits=best is not None,
        finished=found.finished,
        planning_seconds=seconds,
        cpu_seconds=cpu,
    )


def _fits(planned: Planned, request: Request, budget: int) -> bool:
    """Tell whether a recipe fits as the search asks it: with NCCL, replayed by the allocator."""
    kept = margin_of(request, budget)
    if planned.peak_bytes > budget - kept.size_bytes:
        return False
    kept = widened(kept, request, planned.graph, planned.schedule)
    return planned.peak_bytes <= budget - kept.size_bytes


def _recipes(name: str, sequence: int, shop: Captures, way: Parted, budget: int) -> Iterator[Row]:
    """Price every recipe of a way to part layers."""
    cluster = shop.request.cluster(shop.request.world_size)
    devices = cluster.world_size
    c = Configuration(
        Strategy.FSDP,
        devices // way.ranks,
        accumulation=way.ranks,
        precision="bfloat16",
        tensor_ranks=way.ranks,
        sequence_parallel=way.sequence,
    )
    for planned in price_recipes(c, shop.step(c, cluster)):
        yield Row(
            model=f"Llama 3 {name}",
            devices=devices,
            sequence=sequence,
            layers_parted=c.tensor_parallel or "none",
            configuration=f"{c}, {planned.recipe}",
            peak_bytes=planned.peak_bytes,
            milliseconds_a_sample=planned.seconds / devices * 1e3,
            gap_fraction=None,
            fits=_fits(planned, shop.request, budget),
            finished=None,
            planning_seconds=None,
            cpu_seconds=None,
        )


def main() -> None:
    """Run what is named, all by default; write the CSV after each, and print the table."""
    seconds = [float(text.removeprefix("clock=")) for text in sys.argv if "clock=" in text]
    named = [text for text in sys.argv[1:] if text != "searched" and "clock=" not in text]
    chosen = [text.partition("@") for text in named or SIZES]
    recipes = "searched" not in sys.argv
    found = list[Row]()
    for name, _, length in chosen:
        for sequence in [int(length)] if length else SEQUENCES:
            found += rows(name, sequence, recipes=recipes, seconds=(seconds or [SECONDS])[-1])
            written = record("tensor_parallel", found)
    show("Tensor parallelism: searched, and every fixed recipe", found)
    print(written)


if __name__ == "__main__":
    main()
