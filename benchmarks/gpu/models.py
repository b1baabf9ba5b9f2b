"""The models of the checks, and what a training step of one holds and takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import planner
from planner.graphs.hardware.reserve import reserve_parts
from planner.graphs.torch_api.allocation_records import measure_peak

Built = tuple[nn.Module, dict[str, Tensor]]


def gpt2(dropout: float = 0.1, layers: int = 4) -> Built:
    """Build GPT-2 with fused attention."""
    config = hf.GPT2Config(
        n_layer=layers, n_embd=256, n_head=8, n_positions=256, vocab_size=4096, use_cache=False,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    ids = torch.randint(4096, (8, 256))
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def llama() -> Built:
    """Build Llama in bfloat16."""
    config = hf.LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=4096, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(4096, (8, 256))
    return hf.LlamaForCausalLM(config).to(torch.bfloat16), {"input_ids": ids, "labels": ids}


def resnet() -> Built:
    """Build a small ResNet."""
    config = hf.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic",
        num_labels=10,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(16, 3, 96, 96), "labels": torch.randint(10, (16,))}
    return hf.ResNetForImageClassification(config), inputs


MODELS: dict[str, Callable[[], Built]] = {"gpt2": gpt2, "llama": llama, "resnet": resnet}


def vocabulary() -> Built:
    """Build a narrow Llama with a large vocabulary, whose loss is what it holds."""
    config = hf.LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=32_000, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    ids = torch.randint(32_000, (8, 256))
    return hf.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def gpt2_small() -> Built:
    """Build GPT-2 (124M), without dropout, with 8 x 1,024 tokens."""
    config = hf.GPT2Config(use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ids = torch.randint(config.vocab_size, (8, 1024))
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def llama_1b() -> Built:
    """Build a Llama of 1.1 billion parameters in bfloat16 with 2 x 2,048 tokens."""
    config = hf.LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32_000, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    ids = torch.randint(32_000, (2, 2048))
    return hf.LlamaForCausalLM(config).to(torch.bfloat16), {"input_ids": ids, "labels": ids}


def resnet50() -> Built:
    """Build ResNet-50 with 64 pictures."""
    config = hf.ResNetConfig(num_labels=1000)
    inputs = {"pixel_values": torch.randn(64, 3, 224, 224), "labels": torch.randint(1000, (64,))}
    return hf.ResNetForImageClassification(config), inputs


def vit_large() -> Built:
    """Build ViT-L/16 in bfloat16 with 32 pictures."""
    config = hf.ViTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        num_labels=1000,
    )  # fmt: skip
    pictures = torch.randn(32, 3, 224, 224, dtype=torch.bfloat16)
    inputs = {"pixel_values": pictures, "labels": torch.randint(1000, (32,))}
    return hf.ViTForImageClassification(config).to(torch.bfloat16), inputs


AUTOCAST = "autocast"
LARGE: dict[str, Callable[[], Built]] = {
    "GPT-2 124M": gpt2_small,
    f"GPT-2 124M, {AUTOCAST}": gpt2_small,
    "Llama 1.1B, bfloat16": llama_1b,
    "ResNet-50": resnet50,
    f"ResNet-50, {AUTOCAST}": resnet50,
    "ViT-L, bfloat16": vit_large,
}
"""Models of the sizes that people train; whose name says so, under autocast to bfloat16."""


def on(kind: str, build: Callable[[], Built]) -> Built:
    """Build a model, the same every time, and move it and its inputs to a device."""
    if kind == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    model, inputs = build()
    return model.to(kind).train(), {name: x.to(kind) for name, x in inputs.items()}


def half_way(
    model: nn.Module, inputs: dict[str, Tensor], share: float = 0.5, **options: Any
) -> planner.Plan:
    """Plan half way between what is resident and what the plain step holds.

    Args:
        model, inputs: of the step.
        share: the way; where nothing fits, half of what is left of it is added.
        options: what else ``planner.fit`` is told.
    """
    said: dict[str, Any] = {"inputs": inputs, "progress": "off", **options}
    plain: planner.Plan = planner.fit(model, "90%", **said)
    resident = plain.graph.resident_bytes
    while True:
        try:
            budget = int(resident + share * (plain.plain_peak_bytes - resident))
            found: planner.Plan = planner.fit(model, budget, **said)
        except planner.InfeasibleBudget:
            share = (1 + share) / 2
        else:
            return found


def outside_bytes(plan: planner.Plan) -> int:
    """Return the counted part of a device's reserve that torch's allocator knows nothing of."""
    parts = reserve_parts(plan.hardware) if plan.hardware else ()
    return sum(p.size_bytes or 0 for p in parts if p.counted and "cuBLAS" not in p.name)


def allocated_bytes(plan: planner.Plan) -> int:
    """Return what torch's allocator should say a planned step holds at most."""
    held = plan.needs.allocated_bytes if plan.needs else plan.peak_bytes
    return held - outside_bytes(plan)


def peak_of(
    kind: str, model: nn.Module, inputs: dict[str, Tensor], step: Callable[[], float]
) -> int:
    """Return what a step holds at most, with what is held all along."""
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    states = 2 * sum(p.nbytes for p in model.parameters())
    static = [*model.parameters(), *model.buffers(), *inputs.values()]
    model.zero_grad(set_to_none=True)
    held = sum({t.untyped_storage().data_ptr(): t.nbytes for t in static}.values())
    return measure_peak(step, torch.device("cpu")).peak_bytes + held + states


def stepper(
    model: nn.Module,
    inputs: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    forward: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it holds nothing
) -> Callable[[], float]:
    """Return a step of training; it holds its output to its end.

    Args:
        model, inputs: what is run.
        optimizer: by default AdamW.
        forward: what the forward pass alone is run in.
    """
    optimizer = optimizer or torch.optim.AdamW(model.parameters())

    def step() -> float:
        optimizer.zero_grad()
        with forward:
            output = model(**inputs)
        output.loss.backward()
        optimizer.step()
        return float(output.loss.detach())

    return step


def seconds_of(kind: str, step: Callable[[], float]) -> float:
    """Return the median time of five steps, after three."""
    found = []
    for _ in range(8):
        begun = time.perf_counter()
        step()
        if kind == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return median(found[3:])
