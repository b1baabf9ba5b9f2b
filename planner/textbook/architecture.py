"""A model as an estimate sees it: how many parameters, layers, heads, and what a layer is made of.

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
from planner.textbook.families import MODEL_TYPES

if TYPE_CHECKING:
    from torch import nn

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "decoder_layers": ("num_decoder_layers",),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts",),
    "experts_used": ("num_experts_per_tok",),
}
_ACTIVATION = ("dense_act_fn", "hidden_act", "activation_function")
_DROPOUT = ("hidden_dropout_prob", "resid_pdrop", "dropout_rate")
_ATTENTION_DROPOUT: tuple[str, ...] = (
    "attention_probs_dropout_prob", "attn_pdrop", "attention_dropout", "dropout_rate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a model; what nobody gave is ``None``.

    ``family`` is a name of ``FAMILIES``, ``model_type`` what a configuration calls the model;
    ``positions`` are the tokens of a sample that the model itself fixes (patches of an image);
    ``cast_parameters`` those that products read, which autocast casts; ``logits`` says whether the
    model ends in its vocabulary.

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
    intermediate: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    decoder_layers: int | None = None
    positions: int | None = None
    cast_parameters: int | None = None
    model_type: str | None = None
    family: str | None = None
    activation: str | None = None
    gated: bool | None = None
    dropout: bool | None = None
    attention_dropout: bool | None = None
    logits: bool | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            count = getattr(self, name)
            if type(count) is int and count < (name not in ("trainable", "cast_parameters")):
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
    read = read_counts(data) | read_make(data)
    if read:
        read |= {"cast_parameters": _cast(model), "logits": _has_logits(model, read.get("vocab"))}
    return replace(found, **read)


def _cast(model: nn.Module) -> int:
    """Count what autocast casts: weights of products, once, and their biases.

    Several experts in one tensor go through grouped products, which autocast leaves alone.
    """
    from torch import Tensor, nn

    found: dict[int, int] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        found |= {id(p): p.numel() for p in module.parameters(recurse=False)}
    return sum(found.values())


def _has_logits(model: nn.Module, vocab: int | None) -> bool:
    from torch import nn

    return any(m.out_features == vocab for m in model.modules() if isinstance(m, nn.Linear))


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
        import transformers
    except ImportError as error:
        raise BadEstimate(
            f"counting the parameters of {path} needs transformers: install it, or give params "
            "and the other counts"
        ) from error
    import torch

    try:
        config = transformers.AutoConfig.for_model(**data)
        with torch.device("meta"):
            model = _as_trained(config, transformers)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadEstimate(f"transformers cannot build {path}: {error}") from error
    return of_module(model)


def _as_trained(config: Any, transformers: Any) -> nn.Module:
    """Build the class that the configuration names, else the first with a head that there is."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            model: nn.Module = getattr(transformers, name)(config)
            return model
    for head in ("ForCausalLM", "ForSeq2SeqLM", "ForImageClassification", ""):
        try:
            model = getattr(transformers, f"AutoModel{head}").from_config(config)
        except ValueError:  # a model of another kind
            continue
        return model
    raise ValueError(f"no model of type {config.model_type}")


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
    config = _text_part(config)
    found: dict[str, int] = {}
    for ours, theirs in _NAMES.items():
        counts = [config[name] for name in theirs if isinstance(config.get(name), int)]
        if counts:
            found[ours] = counts[0]
    return found


def read_make(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of a layer's make, under our names.

    >>> read_make({"model_type": "vit", "hidden_act": "gelu", "image_size": 32, "patch_size": 16})
    {'model_type': 'vit', 'family': 'vit', 'activation': 'gelu', 'positions': 5}
    """
    config = _text_part(config)
    found: dict[str, Any] = {}
    if kind := config.get("model_type"):
        found |= {"model_type": kind, "family": MODEL_TYPES.get(kind)}
    for ours, theirs in (("activation", _ACTIVATION), ("gated", ("is_gated_act",))):
        said = [config[name] for name in theirs if name in config]
        if said:
            found[ours] = said[0]
    for ours, names in (("dropout", _DROPOUT), ("attention_dropout", _ATTENTION_DROPOUT)):
        said = [config[name] for name in names if isinstance(config.get(name), int | float)]
        if said:
            found[ours] = said[0] > 0
    image, patch = config.get("image_size"), config.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int):
        found["positions"] = (image // patch) ** 2 + 1
    return found


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config
