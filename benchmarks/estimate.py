"""Estimates beside captured graphs: ``python -m benchmarks.estimate [FAMILY...]``.

Every model is built on meta and captured for a card, in float32 and under autocast, as torch
itself would run it. Its activations are what forward made and is held when backward begins, outputs
included; the peak adds gradients. Those of parameters are left out: an estimate has them as states.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as hf
from torch import nn

import planner
from benchmarks.record import record, show
from planner.graphs import Graph, Kind, Phase, Schedule, plain_schedule, simulate
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.training_step import capture_joint
from planner.graphs.snapshot import step_phases

TOLERANCE = 0.1
CARDS = ("A100-80GB", "H100-SXM")
Built = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """A model of a family, what it is given, and how an estimate is told so."""

    family: str
    name: str
    build: Callable[[str], Built]
    seq: int | None
    batch: int
    decoder_seq: int | None = None


@dataclass(frozen=True)
class Row:
    """An estimate beside a capture; an error above 0 is an estimate that is too high."""

    family: str
    model: str
    device: str
    precision: str
    attention: str
    captured_activation_bytes: int
    estimated_activation_bytes: int
    activation_error_fraction: float
    captured_peak_bytes: int
    estimated_peak_bytes: int
    peak_error_fraction: float


def _ids(batch: int, seq: int) -> dict[str, Any]:
    ids = torch.empty(batch, seq, dtype=torch.long)
    return {"input_ids": ids, "labels": ids}


def _language(classes: tuple[str, Any, Any], name: str, batch: int, seq: int, sizes: Any) -> Size:
    family, model, config = classes

    def build(attention: str) -> Built:
        return model(config(attn_implementation=attention, **sizes)), _ids(batch, seq)

    return Size(family, name, build, seq, batch)


def llama(name: str, batch: int, seq: int, **sizes: Any) -> Size:
    """Describe a Llama."""
    sizes = {"use_cache": False, "max_position_embeddings": seq, **sizes}
    return _language(("llama", hf.LlamaForCausalLM, hf.LlamaConfig), name, batch, seq, sizes)


def gpt(name: str, batch: int, seq: int, **sizes: Any) -> Size:
    """Describe a GPT-2."""
    sizes = {"n_positions": seq, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0, **sizes}
    return _language(("gpt", hf.GPT2LMHeadModel, hf.GPT2Config), name, batch, seq, sizes)


def bert(name: str, batch: int, seq: int, **sizes: Any) -> Size:
    """Describe a BERT with its masked-language head."""
    return _language(("bert", hf.BertForMaskedLM, hf.BertConfig), name, batch, seq, sizes)


def mixtral(name: str, batch: int, seq: int, **sizes: Any) -> Size:
    """Describe a Mixtral."""
    sizes = {"use_cache": False, "max_position_embeddings": seq, **sizes}
    return _language(("mixtral", hf.MixtralForCausalLM, hf.MixtralConfig), name, batch, seq, sizes)


def t5(name: str, batch: int, seq: int, decoder_seq: int, **sizes: Any) -> Size:
    """Describe a T5."""

    def build(attention: str) -> Built:
        config = hf.T5Config(
            attn_implementation=attention, use_cache=False, decoder_start_token_id=0, **sizes
        )
        inputs = _ids(batch, seq) | {"labels": torch.empty(batch, decoder_seq, dtype=torch.long)}
        return hf.T5ForConditionalGeneration(config), inputs

    return Size("t5", name, build, seq, batch, decoder_seq)


def vit(name: str, batch: int, **sizes: Any) -> Size:
    """Describe a vision transformer with a classifier."""

    def build(attention: str) -> Built:
        config = hf.ViTConfig(attn_implementation=attention, **sizes)
        side = config.image_size
        inputs = {
            "pixel_values": torch.empty(batch, 3, side, side),
            "labels": torch.empty(batch, dtype=torch.long),
        }
        return hf.ViTForImageClassification(config), inputs

    return Size("vit", name, build, None, batch)


SMALL = (
    llama("llama small", 2, 256, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
          num_attention_heads=8, num_key_value_heads=4, vocab_size=1024),
    gpt("gpt small", 2, 256, n_embd=256, n_layer=4, n_head=8, vocab_size=1024),
    bert("bert small", 2, 256, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
         num_attention_heads=8, vocab_size=1024, max_position_embeddings=256),
    t5("t5 small", 2, 256, 128, d_model=256, d_kv=32, d_ff=1024, num_layers=3, num_heads=8,
       vocab_size=1024),
    vit("vit small", 4, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=8, image_size=128, patch_size=8),
    mixtral("mixtral small", 2, 256, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
            num_attention_heads=8, num_key_value_heads=4, vocab_size=1024, num_local_experts=4),
)  # fmt: skip
"""One of each family, captured in a second."""

LARGE = (
    llama("Llama 3 8B", 1, 4096, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
          num_attention_heads=32, num_key_value_heads=8, vocab_size=128256),
    llama("Llama 2 7B", 2, 4096),
    llama("TinyLlama 1.1B", 4, 2048, hidden_size=2048, intermediate_size=5632,
          num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, vocab_size=32000),
    gpt("GPT-2 124M", 12, 1024),
    gpt("GPT-2 XL 1.5B", 2, 1024, n_embd=1600, n_layer=48, n_head=25),
    bert("BERT base", 32, 512),
    bert("BERT large", 8, 512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
         num_attention_heads=16),
    t5("T5 base", 8, 512, 128, d_model=768, d_ff=3072, num_layers=12, num_heads=12),
    t5("Flan-T5 large", 4, 512, 512, d_model=1024, d_ff=2816, num_layers=24, num_heads=16,
       feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    vit("ViT B/16", 64),
    vit("ViT L/16 384", 8, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
        num_attention_heads=16, image_size=384),
    mixtral("Mixtral 8x7B", 1, 4096),
    mixtral("Mixtral 16 small experts", 4, 2048, hidden_size=1024, intermediate_size=1536,
            num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=4,
            vocab_size=64000, num_local_experts=16, num_experts_per_tok=4),
)  # fmt: skip


def captured(size: Size, card: str, precision: str, attention: str) -> tuple[nn.Module, Graph]:
    """Return a model on meta and the graph of its step on a card."""
    autocast = precision != "float32"
    with torch.device("meta"):
        model, inputs = size.build("sdpa" if attention == "fused" else "eager")
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        traced = capture_joint(
            model.train(), arguments_of(inputs), optimizer=None, device=card, eager=True
        )
    return model, traced.captured.graph


def held(graph: Graph, schedule: Schedule | None = None) -> tuple[int, int]:
    """Return what activations take when backward begins, and what all but states takes at most."""
    gradients = [v for v in graph.outputs if graph.values[v].kind is Kind.GRADIENT]
    values = list(graph.values)
    for v in gradients:
        values[v] = replace(values[v], size_bytes=0)
    passing = replace(graph, values=tuple(values))
    schedule = schedule or plain_schedule(passing)
    trace = simulate(passing, schedule)
    turn = step_phases(passing, schedule).index(Phase.BACKWARD)
    kinds = dict(zip(trace.kinds, map(int, trace.by_kind[turn]), strict=True))
    return kinds[Kind.ACTIVATION] + kinds[Kind.OUTPUT], trace.peak_bytes - graph.resident_bytes


def compared(size: Size, card: str, precision: str, attention: str = "fused") -> Row:
    """Capture a model and estimate it."""
    model, graph = captured(size, card, precision, attention)
    activations, peak = held(graph)
    found = planner.estimate(
        model=model, seq=size.seq, decoder_seq=size.decoder_seq, batch=size.batch,
        precision=precision, attention=attention,
    ).activations[0]  # fmt: skip
    return Row(
        size.family, size.name, card, precision, attention, activations, found.total_bytes,
        found.total_bytes / activations - 1, peak, found.peak_bytes, found.peak_bytes / peak - 1,
    )  # fmt: skip


def rows(families: list[str]) -> Iterator[Row]:
    """Compare every size of the families, or all, on each card and with attention written out."""
    for size in (*SMALL, *LARGE):
        if families and size.family not in families:
            continue
        for precision in ("bfloat16", "float32"):
            for card in CARDS:
                yield compared(size, card, precision)
            yield compared(size, CARDS[0], precision, "materialized")


def main() -> None:
    """Print and record the comparison; exit with 1 if an estimate is off by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    found: list[Row] = []
    for row in rows(parser.parse_args().families):
        found.append(row)
        print(
            f"{row.model}, {row.device}, {row.precision}, {row.attention}: "
            f"{row.activation_error_fraction:+.1%}, peak {row.peak_error_fraction:+.1%}",
            file=sys.stderr,
        )
    show("Estimated and captured", found)
    print(record("estimate", found))
    off = [
        r
        for r in found
        if max(abs(r.activation_error_fraction), abs(r.peak_error_fraction)) > TOLERANCE
    ]
    print(f"{len(found)} comparisons, {len(off)} off by more than {TOLERANCE:.0%}")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
