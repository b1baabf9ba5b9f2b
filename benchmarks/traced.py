"""Trace the graphs of ``benchmarks/instances`` again: ``python -m benchmarks.traced [NAME...]``.

Knows which models they come from. The same torch and transformers write the same files. Six of them
are whole models, kept as files so that solvers compare on them whatever capture does later.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import transformers as hf

from benchmarks.cases import capture_case
from benchmarks.instances import OWN
from benchmarks.models import ZOO, Factory
from benchmarks.models.example import Example, classes, images, seeded, tokens
from benchmarks.models.unets import UNet
from benchmarks.scale import gpt2 as gpt2_of
from planner.graphs import Graph, save_graph


def gpt2() -> Example:
    """Build two layers of GPT-2 with dropout and eager attention: values that are large."""
    config = hf.GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=4,
        n_positions=128,
        vocab_size=256,
        attn_implementation="eager",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    ids = tokens(4, 128, 256)
    return seeded(lambda: hf.GPT2LMHeadModel(config)), {"input_ids": ids, "labels": ids}


def resnet() -> Example:
    """Build a ResNet of four bottleneck blocks."""
    config = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1], num_labels=10
    )
    inputs = {"pixel_values": images(4, 64), "labels": classes(4, 10)}
    return seeded(lambda: hf.ResNetForImageClassification(config)), inputs


def unet() -> Example:
    """Build a U-Net of three sizes."""
    model = seeded(lambda: UNet((8, 16, 32), labels=4))
    return model, {"pixels": images(2, 64), "labels": tokens(2, 64 * 64, 4).view(2, 64, 64)}


def llama() -> Example:
    """Build the zoo's Llama with eight layers."""
    config = hf.LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        vocab_size=4096,
        use_cache=False,
    )
    ids = tokens(8, 256, 4096)
    return seeded(lambda: hf.LlamaForCausalLM(config)), {"input_ids": ids, "labels": ids}


TRACED: dict[str, tuple[Factory, str | None]] = {
    "gpt2_2_layers": (gpt2, "adamw"),
    "resnet_4_blocks": (resnet, "adamw"),
    "unet_3_sizes": (unet, "adamw"),
    "gpt2_12_layers": (lambda: gpt2_of(12), "adamw"),
    "llama_8_layers": (llama, None),
    "resnet50": (ZOO["resnet50"], None),
    "bert": (ZOO["bert"], None),
    "whisper": (ZOO["whisper"], None),
    "unet": (ZOO["unet"], None),
}
"""What is built, and the optimizer whose step is part of the graph."""


def portable(graph: Graph) -> Graph:
    """Shorten every source to folder and file, which no machine's paths differ in."""
    shorter = ("/".join(Path(op.source).parts[-2:]) for op in graph.ops)
    ops = (replace(op, source=source) for op, source in zip(graph.ops, shorter, strict=True))
    return replace(graph, ops=tuple(ops))


def main() -> None:
    """Capture the models named, or all, and write their graphs."""
    for name in sys.argv[1:] or TRACED:
        build, optimizer = TRACED[name]
        case = capture_case(name, *build(), optimizer=optimizer)
        save_graph(portable(case.graph), path := OWN / f"{name}.json")
        print(f"{path}: {len(case.graph.ops)} ops, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
