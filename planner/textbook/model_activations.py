"""What a model keeps for backward: its embeddings, its layers, its head and its loss added up.

Knows which layers a family's models are made of. What each of them keeps is in ``activations``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.errors import BadEstimate
from planner.textbook.activations import (
    ACTIVATIONS,
    FUSED,
    WIDTHS,
    Layer,
    Tokens,
    Widths,
    core_bytes,
    layer_bytes,
    loss_bytes,
)
from planner.textbook.architecture import Architecture
from planner.textbook.estimated import Activations
from planner.textbook.families import FAMILIES, Family
from planner.textbook.formulas import Recompute


@dataclass(frozen=True, slots=True)
class LayeredModel:
    """A family's model of a size: ``encoder`` layers, then ``layers`` that lead to the logits."""

    family: Family
    layer: Layer
    layers: int
    encoder: int
    vocab: int
    cast_parameters: int


def described(a: Architecture) -> LayeredModel | None:
    """Return the model that counts and a configuration describe; ``None`` if too little is known.

    Where only counts are given the family is Llama's if heads are grouped, else GPT's, and the
    width of the MLP is what the parameters leave for it.

    Raises:
        BadEstimate: a family that counts alone do not describe, or a function or a width that no
            formula here knows.
    """
    heads, kv_heads, width = a.heads, a.kv_heads or a.heads, a.width
    if not (a.layers and a.hidden and heads and kv_heads and width):
        return None
    family = family_of(a)
    if family is None:
        return None
    if not family.counted and a.model_type is None:
        raise BadEstimate(f"the family {family.name} needs a model or a config, not counts alone")
    activation = a.activation or family.activation
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise BadEstimate(f"the activation function is {activation!r}; known: {known}")
    dropout = family.dropout if a.dropout is None else a.dropout
    scored = family.scored
    layer = Layer(
        hidden=a.hidden,
        heads=heads,
        queries=heads * width,
        keys=kv_heads * width,
        intermediate=a.intermediate or _intermediate(a, family, heads * width, kv_heads * width),
        activation=activation,
        gated=family.gated if a.gated is None else a.gated,
        written_norm=family.written_norm,
        joined=family.joined,
        dropout=dropout,
        inner_dropout=dropout and scored,
        attention_dropout=dropout if a.attention_dropout is None else a.attention_dropout,
        scored=scored,
        crossed=scored,
        experts_used=(a.experts_used or 2) if family.name == "mixtral" else 0,
    )
    crossed = a.decoder_layers or a.layers
    vocab = (a.vocab or 0) if a.logits is not False else 0
    casts = a.parameters - (0 if family.tied else (a.vocab or 0) * a.hidden)
    return LayeredModel(
        family=family,
        layer=layer,
        layers=crossed if scored else a.layers,
        encoder=a.layers if scored else 0,
        vocab=vocab,
        cast_parameters=casts if a.cast_parameters is None else a.cast_parameters,
    )


def family_of(a: Architecture) -> Family | None:
    """Return whose layers a model has, ``None`` for a configuration of another kind.

    >>> family_of(Architecture(1, 1, heads=8, kv_heads=2)).name
    'llama'
    """
    if a.family is None and a.model_type is not None:
        return None
    return FAMILIES[a.family or ("llama" if a.kv_heads else "gpt")]


def _intermediate(a: Architecture, family: Family, queries: int, keys: int) -> int:
    """Return the width of the MLP that the count of parameters leaves; ``gpt2`` has 4 h."""
    assert a.hidden is not None
    assert a.layers is not None
    if a.model_type is not None:
        return 4 * a.hidden
    tables = (1 if family.tied else 2) * (a.vocab or 0) * a.hidden
    rest = (a.parameters - tables) // a.layers - 2 * a.hidden * (queries + keys)
    found = round(rest / ((3 if family.gated else 2) * a.hidden))
    if found < 1:
        raise BadEstimate(
            f"{a.parameters:,} parameters leave nothing for the MLP of {a.layers} layers of "
            f"{a.hidden}: check the counts, or give intermediate"
        )
    return found


@dataclass(frozen=True, slots=True)
class Given:
    """A micro-batch: tokens that have logits, those an encoder is given, if there is one, and how.

    ``precision`` is a key of ``WIDTHS``, ``attention`` a name of ``ATTENTION``.
    """

    tokens: Tokens
    source: Tokens
    precision: str
    attention: str = FUSED


def activations(model: LayeredModel, given: Given) -> tuple[Activations, ...]:
    """Return what is held for each way to recompute.

    Selective recomputation makes attention's matrices again, where there are any; full keeps the
    input of each layer and makes one layer at a time in full.
    """
    tokens, widths = given.tokens, WIDTHS[given.precision]
    ends = _ends(model, tokens, given.source, widths)
    casts = widths.compute * model.cast_parameters if widths.mixed else 0
    loss, gradients = loss_bytes(model.vocab, tokens, widths, upcast=model.family.upcast)
    logits = widths.compute * model.vocab * tokens.count
    passing = _passing(model.layer, tokens, widths) + logits - loss  # the loss is done with by then
    rows = []
    for recompute in Recompute:
        parts = _layers(model, given, widths, recompute)
        held = sum(count * kept for count, kept, _ in parts) + ends + casts + loss
        again = max(remade for _, _, remade in parts)
        peak = held + max(gradients, passing + again)
        rows.append(Activations(recompute.value, parts[-1][1], held, peak, casts))
    return tuple(rows)


def _passing(layer: Layer, tokens: Tokens, widths: Widths) -> int:
    """Return what gradients take in the last layer: of its sum and of its intermediate."""
    wide = layer.intermediate * (layer.experts_used or 1)
    return (widths.stream * layer.hidden + widths.compute * wide) * tokens.count


def _layers(
    model: LayeredModel, given: Given, widths: Widths, recompute: Recompute
) -> list[tuple[int, int, int]]:
    """Return for encoder and decoder how many layers, what one keeps, and what it makes again."""
    tokens, source, attention = given.tokens, given.source, given.attention
    found = []
    stacks = [(model.layers, tokens, model.layer.crossed)]
    if model.encoder:
        stacks.insert(0, (model.encoder, source, False))
    for count, own, crossed in stacks:
        layer = model.layer if crossed else replace(model.layer, crossed=False)
        whole = layer_bytes(layer, own, widths, attention, source)
        if recompute is Recompute.NONE:
            kept = whole
        elif recompute is Recompute.SELECTIVE:
            kept = whole - core_bytes(layer, own, own, widths, attention)
            if crossed:
                kept -= core_bytes(layer, own, source, widths, attention)
        else:
            kept = widths.stream * layer.hidden * own.count
        found.append((count, kept, whole - kept))
    return found


def _ends(model: LayeredModel, tokens: Tokens, source: Tokens, widths: Widths) -> int:
    """Return what is kept before the first layer and after the last, logits and loss left out."""
    layer, read = model.layer, widths.read
    embedded = widths.stream + layer.dropout
    normed = widths.stream if layer.written_norm else 0
    if (
        model.vocab and model.family.transformed
    ):  # a product, an activation function and a norm in float32
        last = 2 * read + widths.compute + widths.stream
    elif model.vocab:
        last = normed + read
    else:  # what the model returns; one token of each sample is classified in an image
        last = 0 if model.family.name == "vit" else normed + widths.stream
    if not model.encoder:
        return (embedded + last) * layer.hidden * tokens.count
    encoded = embedded + normed + layer.dropout + widths.stream  # the last is what decoders read
    decoded = embedded + last + layer.dropout
    return layer.hidden * (encoded * source.count + decoded * tokens.count)
