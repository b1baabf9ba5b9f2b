"""An estimate as text: a few tables and what they leave out.

Knows how to lay it out. Computes nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.byte_sizes import format_both, format_bytes, format_count
from planner.output.layout import table, wrap
from planner.textbook.activations import FUSED
from planner.textbook.estimated import Estimated
from planner.textbook.families import FAMILIES
from planner.textbook.formulas import Stack, stage_limit
from planner.textbook.pipeline import stages_text

_SHARDS = ("nothing", "optimizer state", "+ gradients", "+ parameters")


def render(e: Estimated) -> str:
    """Write what an estimate found, the weights first, and what it rests on last."""
    tables = (_weights(e), _stages(e), _devices(e), _activations(e), _parted(e))
    sections = (_head(e), *tables, _notes(e))
    return "\n\n".join(section for section in sections if section)


def _head(e: Estimated) -> str:
    a = e.architecture
    trained = "" if a.trainable == a.parameters else f" ({format_count(a.trainable)} trained)"
    shape = [
        f"{count} {name}"
        for name, count in (
            ("layers", a.layers),
            ("hidden", a.hidden),
            ("heads", a.heads),
            ("kv heads", a.kv_heads),
            ("vocabulary", a.vocab),
        )
        if count
    ]
    lines = [f"{format_count(a.parameters)} parameters{trained}" + "".join(f", {s}" for s in shape)]
    if e.device.startswith(tuple("0123456789")):
        lines.append(f"on devices of {format_both(e.memory_bytes)}")
    else:
        lines.append(f"on {e.device}: {format_both(e.memory_bytes)} each")
    return "\n".join(lines)


def _weights(e: Estimated) -> str:
    cached = e.cache_bytes is not None
    header = ("format", "weights", "devices for them alone", "to serve")
    rows = [
        (w.format, format_both(w.size_bytes), f"{w.devices:,}", f"{w.serving_devices:,}")
        for w in e.weights
    ]
    text = f"Weights, for inference\n{table('lrrr', header, rows)}"
    serve = f"to serve counts {format_both(e.reserve_bytes)} of context on each device"
    if cached:
        cache = format_both(e.cache_bytes or 0)
        serve += f" and the key-value cache of {_tokens(e)} in 16 bits, {cache}"
    elif e.cache_token_bytes is None:
        serve += "; the key-value cache comes on top: give layers, hidden and heads"
    else:
        serve += "; the key-value cache comes on top: give seq"
    if e.cache_token_bytes is not None:
        serve += f" ({format_bytes(e.cache_token_bytes)} for each token)"
    return f"{text}\n{wrap(serve, '  ', '  ')}"


def _stages(e: Estimated) -> str:
    names = [stack.value for stack in Stack]
    rows = [
        (
            str(s.stage),
            _SHARDS[s.stage],
            *(format_bytes(s.state_bytes[name]) for name in names),
            format_count(s.largest_parameters),
            format_bytes(s.moved_bytes),
        )
        for s in e.stages
    ]
    header = ("stage", "sharded", *names, "largest model", "sent a step")
    kind = "float32" if e.precision == "float32" else f"{e.precision} mixed precision"
    title = (
        f"Training, {kind}, {e.optimizer}: parameters, gradients and optimizer state on each of "
        f"{e.gpus:,}"
    )
    return f"{title}\n{table('llrrrrr', header, rows)}"


def _devices(e: Estimated) -> str:
    keys = list(e.stages[0].devices)
    rows = [(str(s.stage), *(_or_never(s.devices[key]) for key in keys)) for s in e.stages]
    names = {"none": "+ all activations", "selective": "selective", "full": "full recomputation"}
    header = ("stage", *(names.get(key, "states alone") for key in keys))
    title = "Least number of devices to train on"
    if len(keys) > 1:
        title += f", with activations of {_tokens(e)} on each"
    return f"{title}\n{table('l' + 'r' * len(keys), header, rows)}"


def _grouped(e: Estimated) -> bool:
    return e.architecture.kv_heads not in (None, e.architecture.heads)


def _or_never(count: int | None) -> str:
    return "never" if count is None else f"{count:,}"


def _activations(e: Estimated) -> str:
    if not e.activations:
        return f"Activations\n{wrap(_missing(e), '  ', '  ')}"
    rows = [
        (
            a.recompute,
            format_both(a.layer_bytes),
            format_both(a.total_bytes),
            format_both(a.peak_bytes),
        )
        for a in e.activations
    ]
    header = ("recomputed", "kept of a layer", "held as backward begins", "at the peak")
    title = (
        f"Activations of {_tokens(e)} on one device, {e.attention} attention, layers of {e.family}"
    )
    text = f"{title}\n{table('lrrr', header, rows)}"
    casts = e.activations[0].cast_bytes
    if casts:
        said = (
            f"of it {format_both(casts)} are weights cast by autocast; beside the states of a "
            "stage they are not counted twice"
        )
        text += f"\n{wrap(said, '  ', '  ')}"
    return text


def _parted(e: Estimated) -> str:
    """Say what parted layers would hold where whole ones do not fit, and else a pipeline."""
    if not e.parted:
        return ""
    title = (
        f"Layers parted over devices of a node, stage 3 over all {e.gpus:,}, full recomputation, "
        f"{_tokens(e)}"
    )
    rows = [
        (
            "whole" if row.degree == 1 else str(row.degree),
            format_both(row.peak_bytes),
            "yes" if row.fits else "no",
        )
        for row in e.parted
    ]
    text = f"{title}\n{table('lrl', ('parted over', 'at the peak', 'fits'), rows)}"
    if any(row.fits for row in e.parted):
        return text
    return f"{text}\n{wrap(_pipeline(e), '  ', '  ')}"


def _pipeline(e: Estimated) -> str:
    said = f"nothing fits with layers parted over {e.parted[-1].degree}"
    if e.pipeline is None:
        return f"{said}, and no pipeline would do: take more devices or fewer tokens"
    return f"{said}: a pipeline would be needed. {stages_text(e.pipeline)}"


def _missing(e: Estimated) -> str:
    a = e.architecture
    if a.model_type is not None and a.family is None:
        return (
            f"layers of {a.model_type!r} are not known here: name the nearest of "
            f"{', '.join(FAMILIES)} with family, or capture the model with planner.fit"
        )
    return "give layers, hidden, heads and seq, or a config and seq"


def _tokens(e: Estimated) -> str:
    return f"{e.batch:,} x {e.seq:,} tokens"


def _notes(e: Estimated) -> str:
    return "\n".join(["Notes", *(wrap(note, "  - ", "    ") for note in _said(e))])


def _said(e: Estimated) -> Iterator[str]:
    yield (
        "formulas: ZeRO (arXiv 1910.02054); activations by what each kernel of transformers' "
        "models saves (textbook/activations.py)"
    )
    if e.activations and e.architecture.trainable < e.architecture.parameters:
        yield "activations are of a model that is trained whole; frozen products keep no input"
    if e.activations and e.precision == "float32" and e.attention == FUSED and _grouped(e):
        yield "attention is written out: CUDA has no fused kernel for grouped heads in float32"
    if e.activations and e.attention == FUSED:
        yield (
            "selective recomputation is of attention's matrices, which fused attention never "
            "writes; attention='materialized' counts them"
        )
    yield (
        "least numbers and the largest model use the ZeRO paper's column; with activations the "
        "context's reserve counts too"
    )
    yield (
        "not counted: communication buffers and gathered layers (9 to 36% more in steps measured "
        "on two ranks), optimizer temporaries, kernel workspace, fragmentation"
    )
    by_stage = {s.stage: s for s in e.stages}
    if {0, 2} <= by_stage.keys():
        larger = by_stage[2].largest_parameters / by_stage[0].largest_parameters
        limit = stage_limit(e.precision, e.optimizer)
        yield (
            f"in the same memory stage 2 trains a model {larger:.1f} times as large as stage 0 on "
            f"{e.gpus:,} devices, {limit:.0f} times on very many"
        )
    if 2 in by_stage:
        yield (
            "torch at stage 2 is FSDP2 that keeps gathered weights until backward; float32 weights "
            "and gradients make it larger than the paper's on few devices"
        )
    if e.precision == "float32":
        yield "DeepSpeed's column holds for its mixed precision only"
    yield "int4 and int8 leave out the scales, about 3% at groups of 128"
