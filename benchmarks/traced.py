"""Trace the small graphs of ``benchmarks/instances`` again: ``python -m benchmarks.traced``.

Knows which models they come from. The same torch and transformers write the same files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import transformers as hf

from benchmarks.cases import capture_case
from benchmarks.instances import OWN
from benchmarks.models import Factory
from benchmarks.models.example import Example, classes, images, seeded, tokens
from benchmarks.models.unets import UNet
from graphs import Graph, save_graph


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


TRACED: dict[str, Factory] = {
    "gpt2_2_layers": gpt2,
    "resnet_4_blocks": resnet,
    "unet_3_sizes": unet,
}


def portable(graph: Graph) -> Graph:
    """Shorten every source to folder and file, which no machine's paths differ in."""
    shorter = ("/".join(Path(op.source).parts[-2:]) for op in graph.ops)
    ops = (replace(op, source=source) for op, source in zip(graph.ops, shorter, strict=True))
    return replace(graph, ops=tuple(ops))


def main() -> None:
    """Capture every model and write its graph."""
    for name, build in TRACED.items():
        case = capture_case(name, *build())
        save_graph(portable(case.graph), path := OWN / f"{name}.json")
        print(f"{path}: {len(case.graph.ops)} ops, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
