"""Predictions beside published GPU measurements: ``python -m benchmarks.published CSV``.

The file's rows (source, configuration, GiB, samples or tokens a second on each GPU, remark) are
turned into structured cases: a model, what its step is, what kind of peak was read. A row that no
case expresses is listed with what is missing. Medians are of groups of at least five rows.

A constant that two of these rows set: the share of its rate that a convolution reaches on A100
(``graphs.hardware.table.row.EFFICIENCY``; Hopper's is of rows that are not expressed here).
Everything else is of data sheets or of torch's sources.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.record import record, show
from planner.graphs import schedule_from_order, simulate
from planner.graphs.allocation import needs
from planner.graphs.capture.step_function import arguments_of
from planner.graphs.capture.training_step import capture_joint
from planner.graphs.hardware.devices import device
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of

GIB = 2**30
LEAST_GROUP = 5
Built = tuple[nn.Module, dict[str, Any], int]
"""A model, its inputs, and how many samples or tokens they are."""


@dataclass(frozen=True)
class Case:
    """What a row measured: ``peak`` is "allocated", "reserved" or "" if only speed was."""

    build: Callable[[], Built]
    device: str
    peak: str
    method: str = "plain"
    autocast: torch.dtype | None = None
    dtype: torch.dtype = torch.float32
    optimizer: Any = "adamw"
    accumulate: bool = False


@dataclass(frozen=True)
class Row:
    """A prediction beside a measurement; an error above 0 is a prediction that is too high."""

    group: str
    source: str
    configuration: str
    published_gib: float
    predicted_gib: float
    memory_error_fraction: float
    published_speed: float
    predicted_speed: float
    speed_error_fraction: float


def bert_large(batch: int, length: int) -> Built:
    """Build BERT-large with a classifier and attention written out, as the guide trained it."""
    config = hf.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        vocab_size=28996, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.empty(batch, length, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": torch.empty(batch, dtype=torch.long)}
    return hf.BertForSequenceClassification(config), inputs, batch


def _llama(batch: int, length: int, **sizes: Any) -> Built:
    sizes = {"max_position_embeddings": max(4096, length), "use_cache": False, **sizes}
    ids = torch.empty(batch, length, dtype=torch.long)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
    return model, {"input_ids": ids, "labels": ids}, batch * length


def tiny_llama(batch: int, length: int) -> Built:
    """Build TinyLlama 1.1B."""
    return _llama(
        batch, length, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, vocab_size=32000,
    )  # fmt: skip


def llama_2_7b(batch: int, length: int) -> Built:
    """Build Llama 2 7B."""
    return _llama(
        batch, length, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
    )  # fmt: skip


def llama_3_2_3b(batch: int, length: int) -> Built:
    """Build Llama 3.2 3B, whose embedding is its head."""
    return _llama(
        batch, length, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, vocab_size=128256, head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip


class Adapted(nn.Module):
    """A linear layer and, beside it, two narrow ones that alone are trained."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the narrow layers make."""
        made: torch.Tensor = self.base(x) + self.up(self.down(x))
        return made


def with_lora(built: Built, rank: int) -> Built:
    """Freeze a Llama and put adapters on its queries and values."""
    model, inputs, count = built
    model.requires_grad_(requires_grad=False)
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention = layer.self_attn
        for name in ("q_proj", "v_proj"):
            setattr(attention, name, Adapted(getattr(attention, name), rank))
    return model, inputs, count


def deit_tiny(batch: int) -> Built:
    """Build DeiT-Ti for images of 224 pixels, attention written out."""
    config = hf.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768,
        num_labels=1000, attn_implementation="eager",
    )  # fmt: skip
    inputs = {
        "pixel_values": torch.empty(batch, 3, 224, 224),
        "labels": torch.empty(batch, dtype=torch.long),
    }
    return hf.ViTForImageClassification(config), inputs, batch


def resnet_50(batch: int) -> Built:
    """Build ResNet-50 for images of 224 pixels."""
    model = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000))
    inputs = {
        "pixel_values": torch.empty(batch, 3, 224, 224),
        "labels": torch.empty(batch, dtype=torch.long),
    }
    return model, inputs, batch


def gpt2(batch: int, length: int) -> Built:
    """Build GPT-2 124M as nanoGPT has it: attention written out, no dropout."""
    config = hf.GPT2Config(
        use_cache=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        vocab_size=50304,
    )  # fmt: skip
    ids = torch.empty(batch, length, dtype=torch.long)
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}, batch * length


BRAIN, HALF = torch.bfloat16, torch.float16
# transformers' own AdamW of that time went through the parameters one by one.
_GUIDE = Case(lambda: bert_large(4, 512), "V100-16GB", "reserved", optimizer="adamw_loop")
_ONE_BY_ONE = replace(_GUIDE, build=lambda: bert_large(1, 512), accumulate=True)
CASES: dict[tuple[str, str], Case] = {
    ("HF docs", "bs1x4, AdamW"): _ONE_BY_ONE,
    ("HF docs", "bs1x4 GC, AdamW"): replace(_ONE_BY_ONE, method="checkpoint"),
    ("HF docs", "bs1x4 GC fp16"): replace(_ONE_BY_ONE, method="checkpoint", autocast=HALF),
    ("HF docs", "bs4, AdamW"): _GUIDE,
    ("HF docs", "bs4 fp16"): replace(_GUIDE, autocast=HALF),
    ("LitGPT config_hub", "Llama-2-7B LoRA r32"): Case(
        lambda: with_lora(llama_2_7b(2, 512), 32), "A10G", "allocated", dtype=BRAIN
    ),
    ("LitGPT config_hub", "TinyLlama LoRA r32"): Case(
        lambda: with_lora(tiny_llama(8, 512), 32), "A10G", "allocated", dtype=BRAIN
    ),
    ("LitGPT config_hub", "TinyLlama full"): Case(
        lambda: tiny_llama(4, 512), "A10G", "allocated", dtype=BRAIN
    ),
    ("LitGPT thunder", "1 A100-40"): Case(
        lambda: tiny_llama(4, 2048), "A100-40GB", "allocated", dtype=BRAIN
    ),
    ("Mesa README", "DeiT-Ti"): Case(
        lambda: deit_tiny(128), "RTX-3090", "allocated", autocast=HALF
    ),
    ("NVIDIA DeepLearning", "ResNet-50 bs 256 AMP"): Case(
        lambda: resnet_50(256), "A100-80GB", "", autocast=HALF, optimizer="momentum"
    ),
    ("NVIDIA DeepLearning", "ResNet-50 bs 256 TF32"): Case(
        lambda: resnet_50(256), "A100-80GB", "", optimizer="momentum"
    ),
    ("nanoGPT", "GPT-2 124M"): Case(lambda: gpt2(12, 1024), "A100-40GB", "", autocast=BRAIN),
    ("torchtune", "Llama-3.2-3B full"): Case(
        lambda: llama_3_2_3b(2, 4096),
        "A100-80GB",
        "allocated",
        dtype=BRAIN,
        optimizer="adamw_fused",
    ),
}
"""By a part of a row's source and of its configuration."""

MISSING = {
    "FSDP": "a recipe over several devices, given and not searched for",
    "DDP 8": "a recipe over several devices, given and not searched for",
    "SAC": "checkpointing chosen operator by operator in the source's own code",
    "chunked": "a loss in chunks",
    "torch.compile": "compiled kernels",
    "+ activation": "a loss in chunks and compiled kernels (its rows add up)",
    "pretraining": "a head on masked tokens alone, padding left out",
}


def case_of(row: dict[str, str]) -> Case | str:
    """Return the case of a row, or what is missing to express it."""
    source, configuration = row["source"], row["configuration"]
    found = [c for (s, part), c in CASES.items() if s in source and part in configuration]
    if found:
        return found[0]
    words = (why for word, why in MISSING.items() if word in configuration + source)
    return next(words, "another model")


def predicted(case: Case) -> tuple[float, float]:
    """Return what a case peaks at, in GiB, and its samples or tokens a second."""
    torch.set_default_dtype(case.dtype)
    try:
        with torch.device("meta"):
            model, inputs, count = case.build()
    finally:
        torch.set_default_dtype(torch.float32)
    on = case.autocast
    with torch.autocast("cpu", on) if on else nullcontext():
        traced = capture_joint(
            model.train(), arguments_of(inputs), optimizer=case.optimizer, device=case.device,
            accumulate=case.accumulate, eager=True,
        )  # fmt: skip
    graph = traced.captured.graph
    checkpointed = find_blocks(graph) if case.method == "checkpoint" else []
    schedule = schedule_from_order(graph, order_of(graph, checkpointed))
    trace, reserve = simulate(graph, schedule), device(case.device).reserve_bytes
    peak = trace.peak_bytes
    if case.peak == "reserved":
        peak = needs(graph, schedule).reserved_bytes
    return (peak - reserve) / GIB, count / trace.seconds


def rows_of(path: Path) -> Iterator[Row | str]:
    """Yield a prediction for every row of a file, or why there is none."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            case = case_of(row)
            if isinstance(case, str):
                yield f"{row['source']}: {row['configuration']}: {case}"
                continue
            memory, speed = predicted(case)
            gib = float(row["gib_published"] or math.nan)
            pace = float(row["samples_or_tokens_per_second_per_gpu"] or math.nan)
            how = "autocast" if case.autocast else "no autocast"
            group = case.peak if case.peak != "allocated" else f"{case.peak}, {how}"
            yield Row(
                group or "speed", row["source"], row["configuration"], gib, memory,
                memory / gib - 1, pace, speed, speed / pace - 1,
            )  # fmt: skip


def medians(rows: Sequence[Row]) -> Iterator[str]:
    """Say how far off each group of memory and each device family of speed is."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if not math.isnan(row.memory_error_fraction):
            groups[f"memory, {row.group}"].append(row.memory_error_fraction)
        if not math.isnan(row.speed_error_fraction):
            groups["speed"].append(row.speed_error_fraction)
    for group, errors in groups.items():
        if len(errors) < LEAST_GROUP:
            yield f"{group}: {len(errors)} rows, too few for a median"
        else:
            middle = statistics.median(errors)
            yield (
                f"{group}: {len(errors)} rows, median {middle:+.1%}, of sizes "
                f"{statistics.median(map(abs, errors)):.1%}, lowest {min(errors):+.1%}"
            )


def main() -> None:
    """Print rows, groups and what is missing; record the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path, help="the measurements")
    found = list(rows_of(parser.parse_args().csv))
    rows = [row for row in found if isinstance(row, Row)]
    show("Predicted and published", rows)
    print(*medians(rows), sep="\n")
    print("Not expressed:", *(row for row in found if isinstance(row, str)), sep="\n  ")
    print(record("published", rows))


if __name__ == "__main__":
    main()
