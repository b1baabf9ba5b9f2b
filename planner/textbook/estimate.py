"""How much memory a model takes at the least, from its counts alone: no graph, no device.

Knows which textbook numbers belong together and what fits on how many devices. Knows nothing of
the steps of a real model: ``planner.fit`` captures those and finds what these numbers leave out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.byte_sizes import parse_budget, parse_count
from planner.errors import BadBudget, BadEstimate, UnknownDevice
from planner.graphs.hardware.devices import DeviceSpec
from planner.graphs.hardware.devices import device as find_device
from planner.tensor_parallel import DEGREES
from planner.textbook import formulas
from planner.textbook.activations import ATTENTION, FUSED, Tokens
from planner.textbook.architecture import Architecture, of_config, of_module, of_spec
from planner.textbook.estimate_text import render
from planner.textbook.estimated import (
    Activations,
    Estimated,
    PartedLayers,
    StageStates,
    Weights,
)
from planner.textbook.families import FAMILIES
from planner.textbook.formulas import Stack
from planner.textbook.model_activations import Given, LayeredModel, activations, described
from planner.textbook.pipeline import OneStage, least_pipeline, possible_stages

if TYPE_CHECKING:
    from torch import nn

RESERVE_BYTES = 2**30
"""What a context takes of a device that is given by its size alone."""


class Estimate(Estimated):
    """Everything that was asked and found; ``str`` lays it out for people."""

    def __str__(self) -> str:
        return render(self)


def estimate(
    params: str | float | None = None,
    *,
    model: nn.Module | str | None = None,
    config: str | Path | None = None,
    trainable: str | float | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab: int | None = None,
    intermediate: int | None = None,
    family: str | None = None,
    seq: int | None = None,
    decoder_seq: int | None = None,
    batch: int = 1,
    gpus: int = 8,
    device: DeviceSpec = "80GB",
    precision: str = "bfloat16",
    attention: str = FUSED,
    optimizer: str = "adamw",
    stage: int | None = None,
) -> Estimate:
    """Say what a model's weights, training states, activations and cache take.

    Args:
        params: how many parameters: 70e9, "70B". Or give a model, or a config.
        model: a module, or a text that names one; it is built on meta.
        config: a transformers ``config.json``; its model is built on meta to count parameters.
        trainable: how many of the parameters are trained, all by default.
        layers, hidden, heads, kv_heads, head_dim, vocab, intermediate: override what the model
            says; ``intermediate`` is the width of the MLP.
        family: whose layers they are, a name of ``textbook.families.FAMILIES``; by default the
            configuration's, else Llama's if there are ``kv_heads`` and GPT's if not.
        seq, batch: tokens and samples of one micro-batch on one device; the tokens of an image are
            what its configuration says, unless ``seq`` is given.
        decoder_seq: tokens of a sample that a decoder beside an encoder makes; ``seq`` by default.
        gpus: data-parallel devices.
        device: what ``graphs.hardware.devices.device`` takes, or a size such as "80GB" that counts
            as it is printed.
        precision: of compute, "bfloat16", "float16" (both under autocast, over float32 weights) or
            "float32".
        attention: "fused", in one kernel where CUDA has one, or "materialized", written out.
        optimizer: whose state is counted.
        stage: one ZeRO stage, all by default.

    Raises:
        BadEstimate: a number that makes no sense, or too little to go by.
        UnknownDevice: neither a device of the table nor a size.

    >>> found = estimate("7.5B", gpus=64)
    >>> [round(s.state_bytes["ZeRO paper"] / 1e9, 1) for s in found.stages]
    [120.0, 31.4, 16.6, 1.9]
    """
    given = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads}
    given |= {"head_dim": head_dim, "vocab": vocab, "intermediate": intermediate}
    asked: dict[str, Any] = {
        name: _whole(name, count) for name, count in given.items() if count is not None
    }
    found = replace(_described(params, model, config, trainable), **asked)
    if family is not None:
        _one_of("family", family, FAMILIES)
        found = replace(found, family=family)
    _one_of("attention", attention, ATTENTION)
    precision = _SHORT.get(precision, precision)
    _one_of("precision", precision, formulas.ITEM_BYTES)
    kind = optimizer.removesuffix("_foreach").removesuffix("_fused")
    _one_of("optimizer", kind, formulas.OPTIMIZER_BYTES)
    if stage is not None:
        _one_of("stage", stage, formulas.STAGES)
    name, memory_bytes, reserve_bytes = _memory(device)
    start = Estimate(
        architecture=found,
        gpus=_whole("gpus", gpus),
        device=name,
        memory_bytes=memory_bytes,
        reserve_bytes=reserve_bytes,
        precision=precision,
        optimizer=kind,
        seq=found.positions if seq is None else _whole("seq", seq),
        batch=_whole("batch", batch),
        decoder_seq=None if decoder_seq is None else _whole("decoder_seq", decoder_seq),
        attention=attention,
        family=None,
        cache_token_bytes=_cache_token_bytes(found),
        cache_bytes=None,
        weights=(),
        stages=(),
        activations=(),
    )
    return _filled(start, formulas.STAGES if stage is None else (stage,))


_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _filled(e: Estimate, stages: tuple[int, ...]) -> Estimate:
    """Work out the tables."""
    if e.memory_bytes <= e.reserve_bytes:
        raise BadEstimate(f"a device of {e.memory_bytes:,} bytes is all taken by its context")
    if e.cache_token_bytes is not None and e.seq is not None:
        e = replace(e, cache_bytes=e.cache_token_bytes * e.seq * e.batch)
    if e.seq is not None and (model := described(e.architecture)) is not None:
        e = replace(e, family=model.family.name, activations=_activations(e, model, e.seq))
    e = replace(
        e,
        weights=tuple(_weights(e, name, bits) for name, bits in formulas.WEIGHT_BITS.items()),
        stages=tuple(_stage(e, stage) for stage in stages),
    )
    return _parted(e) if e.activations else e


def _parted(e: Estimate) -> Estimate:
    """Add degrees of tensor parallelism where whole layers do not fit, and else a pipeline.

    All is counted at stage 3 over all devices and with full recomputation, where least is held.
    """
    whole = _one_stage(e, 1)
    usable = e.memory_bytes - e.reserve_bytes
    if _peak(whole) <= usable:
        return e
    heads = [n for n in (e.architecture.heads, e.architecture.kv_heads) if n]
    degrees = [d for d in DEGREES if e.gpus % d == 0 and all(n % d == 0 for n in heads)]
    held = [(d, _peak(_one_stage(e, d))) for d in degrees]
    rows = tuple(PartedLayers(d, peak, peak <= usable) for d, peak in held)
    if any(row.fits for row in rows):
        return replace(e, parted=rows)
    possible = possible_stages(e.gpus // degrees[-1], e.architecture.layers or 1)
    found = least_pipeline(_one_stage(e, degrees[-1]), usable, possible)
    return replace(e, parted=rows, pipeline=found)


def _one_stage(e: Estimate, degree: int) -> OneStage:
    """Return what a device holds of one micro-batch, all layers parted over so many."""
    a, full = e.architecture, e.activations[-1]
    frozen = a.parameters - a.trainable
    states = formulas.model_states(
        a.trainable, frozen, stage=3, precision=e.precision, optimizer=e.optimizer
    )
    kept = full.total_bytes - full.cast_bytes
    return OneStage(
        states.on(e.gpus), kept // degree, (full.peak_bytes - full.total_bytes) // degree
    )


def _peak(whole: OneStage) -> int:
    return whole.states_bytes + whole.kept_bytes + whole.working_bytes


def _described(
    params: str | float | None,
    model: nn.Module | str | None,
    config: str | Path | None,
    trainable: str | float | None,
) -> Architecture:
    sources = [source for source in (params, model, config) if source is not None]
    if len(sources) != 1:
        raise BadEstimate(f"expected one of params, a model and a config, found {len(sources)}")
    if config is not None:
        found = of_config(config)
    elif model is not None:
        found = of_spec(model) if isinstance(model, str) else of_module(model)
    else:
        count = _count("params", params)
        found = Architecture(count, count)
    if trainable is None:
        return found
    return replace(found, trainable=_count("trainable", trainable))


def _count(name: str, count: Any) -> int:
    try:
        return parse_count(count)
    except ValueError as error:
        raise BadEstimate(f"{name}: {error}") from error


def _whole(name: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadEstimate(f"{name} is {count!r}: expected a positive whole number")
    return count


def _one_of(what: str, name: Any, valid: Any) -> None:
    if name not in valid:
        raise BadEstimate(f"unknown {what} {name!r}; valid: {', '.join(map(str, valid))}")


def _memory(device: DeviceSpec) -> tuple[str, int, int]:
    """Return a device's name, memory and reserve; a size is memory of which all can be used."""
    try:
        row = find_device(device)
    except ValueError as unknown:
        try:
            return str(device), parse_budget(str(device)), RESERVE_BYTES
        except BadBudget:
            raise UnknownDevice(f"{unknown}; or a size such as '80GB'") from unknown
    return row.name, row.memory_bytes, row.reserve_bytes


def _cache_token_bytes(found: Architecture) -> int | None:
    kv_heads = found.kv_heads or found.heads
    if not (found.layers and kv_heads and found.width):
        return None
    return formulas.cache_bytes_per_token(found.layers, kv_heads, found.width)


def _weights(e: Estimate, name: str, bits: int) -> Weights:
    size = formulas.weight_bytes(e.architecture.parameters, bits)
    serving = size + (e.cache_bytes or 0)
    usable = e.memory_bytes - e.reserve_bytes
    return Weights(
        name,
        size,
        formulas.devices_for(size, e.memory_bytes),
        formulas.devices_for(serving, usable),
    )


def _activations(e: Estimate, model: LayeredModel, seq: int) -> tuple[Activations, ...]:
    source = Tokens(seq, e.batch)
    tokens = Tokens(e.decoder_seq or seq, e.batch) if model.encoder else source
    return activations(model, Given(tokens, source, e.precision, e.attention))


def _stage(e: Estimate, stage: int) -> StageStates:
    a = e.architecture
    frozen = a.parameters - a.trainable
    states = {
        stack: formulas.model_states(
            a.trainable,
            frozen,
            stage=stage,
            stack=stack,
            precision=e.precision,
            optimizer=e.optimizer,
        )
        for stack in Stack
    }
    paper = states[Stack.PAPER]
    usable = e.memory_bytes - e.reserve_bytes
    devices = {"states": paper.least_ranks(e.memory_bytes)}
    for row in e.activations:
        # the paper's 2 P of weights are the casts
        held = row.peak_bytes - row.cast_bytes
        devices[row.recompute] = paper.least_ranks(usable - held)
    moved = formulas.moved_elements(a.trainable, frozen, stage=stage, ranks=e.gpus)
    return StageStates(
        stage=stage,
        state_bytes={stack.value: held.on(e.gpus) for stack, held in states.items()},
        largest_parameters=e.memory_bytes * a.parameters // max(1, paper.on(e.gpus)),
        moved_bytes=moved * formulas.ITEM_BYTES[e.precision],
        devices=devices,
    )
