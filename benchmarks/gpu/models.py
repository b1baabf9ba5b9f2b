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

from planner.graphs.torch_api.allocation_records import measure_peak

Built = tuple[nn.Module, dict[str, Tensor]]


def _language(kind: type[nn.Module], config: Any, *size: int) -> Built:
    """Build a model of transformers and a batch of tokens, which are the labels, too."""
    ids = torch.randint(config.vocab_size, size)
    return kind(config), {"input_ids": ids, "labels": ids}


def gpt2(dropout: float = 0.1, layers: int = 4) -> Built:
    """Build GPT-2 with fused attention."""
    config = hf.GPT2Config(
        n_layer=layers, n_embd=256, n_head=8, n_positions=256, vocab_size=4096, use_cache=False,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return _language(hf.GPT2LMHeadModel, config, 8, 256)


def _llama(*size: int, **config: Any) -> Built:
    """Build Llama with four heads for keys and values."""
    config = {"num_key_value_heads": 4, "use_cache": False} | config
    return _language(hf.LlamaForCausalLM, hf.LlamaConfig(**config), *size)


def llama() -> Built:
    """Build Llama in bfloat16."""
    model, inputs = _llama(
        8, 256, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=8, vocab_size=4096,
    )  # fmt: skip
    return model.to(torch.bfloat16), inputs


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
    return _llama(
        8, 256, hidden_size=256, intermediate_size=688, num_hidden_layers=2,
        num_attention_heads=8, vocab_size=32_000, tie_word_embeddings=False,
    )  # fmt: skip


def gpt2_small() -> Built:
    """Build GPT-2 (124M), without dropout, with 8 x 1,024 tokens."""
    config = hf.GPT2Config(use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return _language(hf.GPT2LMHeadModel, config, 8, 1024)


def llama_1b() -> Built:
    """Build a Llama of 1.1 billion parameters in bfloat16 with 2 x 2,048 tokens."""
    model, inputs = _llama(
        2, 2048, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, vocab_size=32_000, tie_word_embeddings=False,
    )  # fmt: skip
    return model.to(torch.bfloat16), inputs


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
