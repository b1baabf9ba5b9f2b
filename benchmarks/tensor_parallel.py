"""Tensor parallelism as a choice: ``python -m benchmarks.tensor_parallel [MODEL[@SEQUENCE] ...]``.

Llama 3 on meta, one sample for each H100, in bfloat16 with float32 master weights: what the search
over all degrees chooses, its gap and its seconds, beside the best of every fixed degree, with and
without sequence parallelism. What the search captured serves the fixed degrees, too, so that only
the row "searched" has the seconds of a plan made alone.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.record import record, show
from planner.graphs.hardware.cluster import Cluster
from planner.make_cluster import make_cluster
from planner.request import Request, request_of
from planner.sharding import strategies  # noqa: F401 (it enters them)
from planner.sharding.captures import Captures
from planner.sharding.configurations import Parted, configurations
from planner.sharding.fit_sharded import explored
from planner.sharding.parted.ways import ways_of
from planner.sharding.search import SearchResult
from planner.solvers import Limits
from planner.tensor_parallel import TensorParallel

DEVICE, BUDGET = "H100 SXM", "80GB"
SEQUENCES = (4096, 8192, 16384)
SECONDS = 60.0
"""What the solver is given: for the search, and again for each fixed degree."""


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
    """The best of one degree, or of all that were searched."""

    model: str
    devices: int
    sequence: int
    layers_parted: str
    configuration: str
    peak_bytes: int | None
    milliseconds_a_sample: float | None
    gap_fraction: float | None
    finished: bool
    planning_seconds: float


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


def request_for(name: str, sequence: int, said: Callable[[str], None]) -> Request:
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
        "limits": Limits(seconds=SECONDS),
        "progress": said,
    }
    return request_of(llama(SIZES[name]), options)


def rows(name: str, sequence: int) -> Iterator[Row]:
    """Search all degrees, then each by itself."""
    start = time.perf_counter()

    def said(sentence: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {sentence}", file=sys.stderr, flush=True)

    request = request_for(name, sequence, said)
    cluster = make_cluster(request.hardware, request.world_size)
    shop = Captures(request, ways_of(request.model, TensorParallel(), cluster))
    row = functools.partial(_row, name, sequence)
    yield row("searched", *_found(shop, cluster, tuple(shop.ways.styles)))
    for way in shop.ways.styles:
        kind = "TP+SP" if way.sequence else "TP"
        label = "none" if way.ranks == 1 else f"{kind} {way.ranks}"
        yield row(label, *_found(shop, cluster, (way,)))


def _found(shop: Captures, cluster: Cluster, ways: Sequence[Parted]) -> tuple[SearchResult, float]:
    start = time.perf_counter()
    among = [
        c
        for way in ways
        for c in configurations(
            cluster.world_size,
            cluster.world_size,
            devices_per_node=cluster.devices_per_node,
            precisions=shop.request.precisions,
            offload=False,
            parted=way,
        )
    ]
    budget = shop.request.budget_bytes(BUDGET)
    found, _ = explored(shop.request, shop.space(cluster, among), budget)
    return found, time.perf_counter() - start


def _row(name: str, sequence: int, label: str, found: SearchResult, seconds: float) -> Row:
    best, devices = found.best, SIZES[name].devices
    return Row(
        model=f"Llama 3 {name}",
        devices=devices,
        sequence=sequence,
        layers_parted=label,
        configuration=str((best or found.closest).configuration) if best else "nothing fits",
        peak_bytes=(best or found.closest).peak_bytes,
        milliseconds_a_sample=best.seconds / devices * 1e3 if best else None,
        gap_fraction=max(0.0, 1 - found.bound_seconds / best.seconds) if best else None,
        finished=found.finished,
        planning_seconds=seconds,
    )


def main() -> None:
    """Run what is named, all by default; print the table and write the CSV."""
    chosen = [text.partition("@") for text in sys.argv[1:] or SIZES]
    found = [
        row
        for name, _, length in chosen
        for sequence in ([int(length)] if length else SEQUENCES)
        for row in rows(name, sequence)
    ]
    show("Tensor parallelism: searched, and every fixed degree", found)
    print(record("tensor_parallel", found))


if __name__ == "__main__":
    main()
