"""Families of models whose layers an estimate knows: what ``transformers`` builds for each.

A family says what a layer consists of; how large it is, which function it has and whether it drops
is read from a configuration, or taken as a family has it where only counts are given.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one kind have in common.

    ``upcast`` says that logits are taken to float32 before the loss; ``transformed`` that a layer
    of its own stands before the vocabulary's (BERT); ``tied`` that the embedding usually is the
    head; ``counted`` that counts alone are enough, without a configuration.
    """

    name: str
    activation: str
    gated: bool = False
    written_norm: bool = False
    joined: bool = False
    dropout: bool = False
    scored: bool = False
    upcast: bool = True
    transformed: bool = False
    tied: bool = False
    counted: bool = True


FAMILIES = {
    family.name: family
    for family in (
        Family("gpt", "gelu_new", joined=True, dropout=True, tied=True),
        Family("llama", "silu", gated=True, written_norm=True),
        Family("bert", "gelu", dropout=True, upcast=False, transformed=True, tied=True),
        Family("vit", "gelu"),
        Family("t5", "relu", written_norm=True, dropout=True, scored=True, upcast=False,
               tied=True, counted=False),
        Family("mixtral", "silu", gated=True, written_norm=True, counted=False),
    )
}  # fmt: skip

MODEL_TYPES = {
    "bert": "bert",
    "gpt2": "gpt",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "mixtral",
    "mt5": "t5",
    "qwen2": "llama",
    "roberta": "bert",
    "t5": "t5",
    "vit": "vit",
}
"""The family of each ``model_type`` of ``transformers``."""
