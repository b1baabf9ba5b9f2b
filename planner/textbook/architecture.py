"""A model as an estimate sees it: how many parameters, layers, heads.

Knows where a transformers configuration keeps these numbers and how to count parameters on meta,
which allocates nothing. Knows nothing of what they cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import BadEstimate
from planner.model_argument import load_example

if TYPE_CHECKING:
    from torch import nn

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "vocab": ("vocab_size",),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a model; a count that nobody gave is ``None``.

    Raises:
        BadEstimate: a count is not positive, or counts contradict each other.

    >>> Architecture(7_000_000_000, 7_000_000_000, hidden=4096, heads=32).width
    128
    """

    parameters: int
    trainable: int
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab: int | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            count = getattr(self, name)
            if count is not None and count < (name != "trainable"):
                raise BadEstimate(f"{name} is {count}: expected a positive whole number")
        if self.trainable > self.parameters:
            raise BadEstimate(
                f"{self.trainable:,} trainable of {self.parameters:,} parameters: "
                "expected no more than there are"
            )
        if self.heads and self.kv_heads and self.heads % self.kv_heads:
            raise BadEstimate(f"{self.heads} heads do not divide among {self.kv_heads} kv heads")
        if self.hidden and self.heads and not self.head_dim and self.hidden % self.heads:
            raise BadEstimate(
                f"a hidden size of {self.hidden} does not divide among {self.heads} heads: "
                "give head_dim"
            )

    @property
    def width(self) -> int | None:
        """Return the size of one head."""
        if self.head_dim or not (self.hidden and self.heads):
            return self.head_dim
        return self.hidden // self.heads


def of_module(model: nn.Module) -> Architecture:
    """Count a module's parameters, tied ones once, and read its configuration if it has one.

    >>> from torch import nn
    >>> of_module(nn.Linear(10, 2)).parameters
    22
    """
    parameters = list(model.parameters())
    if not parameters:
        raise BadEstimate(f"{type(model).__name__} has no parameters")
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    found = Architecture(sum(p.numel() for p in parameters), trainable)
    config: Any = getattr(model, "config", None)
    data = config.to_dict() if hasattr(config, "to_dict") else {}
    return replace(found, **read_counts(data))


def of_spec(spec: str) -> Architecture:
    """Build the model that a text names on meta, and describe it.

    Raises:
        BadSpec: the text leads to no model.
    """
    import torch

    with torch.device("meta"):
        return of_module(load_example(spec).model)


def of_config(path: str | Path) -> Architecture:
    """Build the model of a transformers ``config.json`` on meta, and describe it.

    Raises:
        BadEstimate: no such file, not a configuration, or transformers does not know the model.
    """
    data = _read(Path(path))
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    except ImportError as error:
        raise BadEstimate(
            f"counting the parameters of {path} needs transformers: install it, or give params "
            "and the other counts"
        ) from error
    import torch

    try:
        config = AutoConfig.for_model(**data)
        with torch.device("meta"):
            try:
                model = AutoModelForCausalLM.from_config(config)
            except ValueError:  # not a decoder
                model = AutoModel.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadEstimate(f"transformers cannot build {path}: {error}") from error
    return of_module(model)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadEstimate(f"{path} is not a readable JSON configuration: {error}") from error
    if not isinstance(data, dict) or "model_type" not in data:
        raise BadEstimate(
            f"{path} is not a transformers configuration: expected an object with a model_type"
        )
    return data


def read_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts that a configuration gives, under our names.

    >>> read_counts({"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257})
    {'layers': 12, 'hidden': 768, 'heads': 12, 'vocab': 50257}
    """
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    found: dict[str, int] = {}
    for ours, theirs in _NAMES.items():
        counts = [config[name] for name in theirs if isinstance(config.get(name), int)]
        if counts:
            found[ours] = counts[0]
    return found
