"""Large models on their clusters, planned on meta: ``python -m benchmarks.clusters [NAME ...]``.

A dense language model, one of experts, one whose weights are frozen but for adapters, an encoder
and decoder, and a recommendation model with tables of 400 million rows: how long ``planner.fit``
takes from a model on meta to a plan, by the clock and of the processor, what is chosen, and how
near its proof is. Nothing is run. The solver stops by the clock, so the machine should be idle.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import planner
from benchmarks.record import record, show
from planner.output.sharded_plan_text import chosen

ROWS = 400_000_000
"""Of all tables of the recommendation model."""


class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): 26 tables, the largest with 100 million rows, and two MLPs."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [ROWS // 4, ROWS // 4, ROWS // 8, ROWS // 8, ROWS // 16, ROWS // 16, ROWS // 16]
        sizes += [10_000 * (i + 1) for i in range(19)]
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in sizes)
        self.bottom = _mlp(13, 512, 256, width)
        self.top = _mlp(width + 27 * 27, 1024, 1024, 512, 256, 1)

    def forward(self, dense: Tensor, ids: Tensor, label: Tensor) -> Tensor:
        """Return the loss for (batch, 13) features, (batch, 26, hot) ids, (batch,) labels."""
        x = self.bottom(dense)
        found = [table(i) for table, i in zip(self.tables, ids.unbind(1), strict=True)]
        rows = torch.stack([x, *found], 1)
        made = self.top(torch.cat([x, (rows @ rows.mT).flatten(1)], 1))
        return F.binary_cross_entropy_with_logits(made.squeeze(1), label)


def _mlp(*widths: int) -> nn.Sequential:
    made = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*made[:-1])


def _text(samples: int, length: int) -> dict[str, Tensor]:
    ids = torch.zeros(samples, length, dtype=torch.long, device="meta")
    return {"input_ids": ids, "labels": ids}


def llama_8b() -> tuple[nn.Module, dict[str, Tensor]]:
    """Llama-3-8B, sequences of 8,192."""
    config = hf.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, use_cache=False,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config), _text(1, 8192)


def mixtral() -> tuple[nn.Module, dict[str, Tensor]]:
    """Mixtral 8x7B, sequences of 4,096."""
    return hf.MixtralForCausalLM(hf.MixtralConfig(use_cache=False)), _text(1, 4096)


def lora_70b() -> tuple[nn.Module, dict[str, Tensor]]:
    """Llama-3-70B with adapters of rank 16 on attention's projections, sequences of 4,096."""
    config = hf.LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, use_cache=False,
    )  # fmt: skip
    adapters = peft.LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = hf.LlamaForCausalLM(config).to(torch.bfloat16)
    return peft.get_peft_model(model, adapters), _text(1, 4096)


def t5_3b() -> tuple[nn.Module, dict[str, Tensor]]:
    """T5-3B, 512 tokens read and 512 written."""
    config = hf.T5Config(
        d_model=1024, d_kv=128, d_ff=16384, num_layers=24, num_heads=32, use_cache=False,
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config), _text(1, 512)


def dlrm() -> tuple[nn.Module, dict[str, Tensor]]:
    """A recommendation model with 400 million rows of 128, batches of 2,048 a device."""
    samples = 2048
    return Recommender(), {
        "dense": torch.zeros(samples, 13, device="meta"),
        "ids": torch.zeros(samples, 26, 1, dtype=torch.long, device="meta"),
        "label": torch.zeros(samples, device="meta"),
    }


@dataclass(frozen=True)
class Case:
    """A model, its devices and their memory, and what else is said to ``planner.fit``."""

    make: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
    device: str
    devices: int
    budget: str
    global_batch: int
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama-3-8b": Case(llama_8b, "H100", 8, "80GB", 32),
    "mixtral-8x7b": Case(mixtral, "H100", 64, "80GB", 256),
    "llama-70b-lora": Case(lora_70b, "H100", 8, "80GB", 32, {"offload": True}),
    "t5-3b": Case(t5_3b, "A100-40GB", 8, "40GB", 64),
    "dlrm": Case(dlrm, "A100-80GB", 16, "80GB", 16 * 2048),
}


@dataclass(frozen=True)
class Row:
    """What was planned: in how long, and how near the proof is."""

    model: str
    devices: str
    planning_seconds: float
    processor_seconds: float
    milliseconds_a_sample: float
    gap_fraction: float
    peak_bytes: int
    chosen: str
    status: str


def row(name: str, case: Case) -> Row:
    """Plan a case within the whole of its devices."""
    with torch.device("meta"):
        model, inputs = case.make()
    start, before = time.perf_counter(), time.process_time()
    plan = planner.fit(
        model.train(), case.budget, inputs=inputs, device=case.device, world_size=case.devices,
        global_batch=case.global_batch, precisions=["bfloat16"], optimizer="adamw", **case.options,
    )  # fmt: skip
    took, used = time.perf_counter() - start, time.process_time() - before
    print(plan, "\n", flush=True)
    assert isinstance(plan, planner.ShardedPlan)
    return Row(
        model=name,
        devices=f"{case.devices} x {plan.cluster.device.name}",
        planning_seconds=took,
        processor_seconds=used,
        milliseconds_a_sample=1e3 * plan.seconds_per_sample,
        gap_fraction=plan.gap,
        peak_bytes=plan.peak_bytes,
        chosen=chosen(plan),
        status=plan.status.name.lower(),
    )


def main(names: list[str]) -> Iterator[Row]:
    """Plan the cases named, or all."""
    for name in names or CASES:
        yield row(name, CASES[name])


if __name__ == "__main__":
    found = list(main(sys.argv[1:]))
    show("Large models on their clusters", found)
    print(record("clusters", found))
