"""From the words of a row to a case, or to what is missing to express it.

Rows of one source write alike, so each source is a function that knows its habits; what all write
(batch, length, devices, checkpointing) is read by one. A row that begins with "same" or "+" goes on
with the source's first row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.models import litgpt, mpt, torchtitan
from benchmarks.published.case import Adapters, Case, Library, Peak, Precision, Sharding
from planner.graphs.hardware.devices import Device, device
from planner.sharding.recipes import Checkpoint

Row = Mapping[str, str]


class NotExpressedError(ValueError):
    """A row that no case stands for; the message says what is missing."""


@dataclass(frozen=True)
class Words:
    """A row's words: its own, and those of the row that it goes on with."""

    source: str
    own: str
    base: str
    remark: str

    @property
    def all(self) -> str:
        """Everything that holds for the row."""
        return f"{self.base}, {self.own}"

    def has(self, pattern: str) -> bool:
        """Tell whether a pattern is in what holds for the row."""
        return re.search(pattern, self.all) is not None

    def number(self, pattern: str, default: int | None = None) -> int:
        """Return the first number that a pattern finds, in the row's own words first."""
        for text in (self.own, self.base):
            if found := re.search(pattern, text):
                return int(found[1])
        if default is None:
            raise NotExpressedError(f"no {pattern} in {self.all!r}")
        return default


def words_of(row: Row, rows: Sequence[Row]) -> Words:
    """Return the words of a row.

    Args:
        row: of the file.
        rows: all of them; the first of the same source that stands alone is gone on with.
    """
    own = row["configuration"]
    goes_on = own.startswith(("same", "+"))
    alone = (
        r["configuration"]
        for r in rows
        if r["source"] == row["source"] and not r["configuration"].startswith(("same", "+"))
    )
    base = next(alone, "") if goes_on else ""
    return Words(row["source"], own, base, row.get("remark") or "")


def case_of(row: Row, rows: Sequence[Row]) -> Case:
    """Return the case that a row measured.

    Args:
        row: of the file.
        rows: all of them.

    Raises:
        NotExpressedError: it cannot be expressed; the message says what is missing.
    """
    said = words_of(row, rows)
    for pattern, read in _SOURCES:
        if re.search(pattern, said.source):
            return read(said)
    raise NotExpressedError("a source whose habits are not known")


def _named(names: Mapping[str, object], text: str) -> str:
    """Return the longest name that a text has, however it writes hyphens and case."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9.]", "", name.lower())

    found = [name for name in names if plain(name) in plain(text)]
    if not found:
        raise NotExpressedError(f"another model: {text.partition(',')[0]}")
    return max(found, key=len)


def _lacking(said: Words, *reasons: tuple[str, str]) -> None:
    """Say what is missing if one of some patterns is in a row.

    Raises:
        NotExpressedError: the first of them is.
    """
    for pattern, why in reasons:
        if said.has(pattern):
            raise NotExpressedError(why)


def _checkpoint(said: Words) -> Checkpoint:
    _lacking(said, (r"selective layer|AC \d|p ?= ?\d", "checkpointing of some blocks alone"))
    if re.search(r"\bSAC\b|op-SAC|[Ss]elective", said.own):
        return Checkpoint.SELECTIVE
    return Checkpoint.FULL if said.has(r"full AC|AC full|\bGC\b|\+ activation") else Checkpoint.NONE


def _sharding(said: Words, ranks: int) -> dict[str, object]:
    if found := re.search(r"HSDP (\d+)", said.all):
        return {"sharding": Sharding.HSDP, "ranks": ranks, "shard_ranks": int(found[1])}
    if re.search(r"\bDDP", said.own):
        return {"sharding": Sharding.DDP, "ranks": ranks}
    if said.has("FSDP"):
        return {"sharding": Sharding.FSDP, "ranks": ranks, "shard_ranks": ranks}
    return {}


_CARDS = (
    (r"H100-96", "H100-SXM-96GB"),
    (r"H100", "H100-SXM"),
    (r"B200", "B200"),
    (r"A100-(?:SXM-)?80|A100 80", "A100-80GB"),
    (r"A100", "A100-40GB"),
    (r"A10G", "A10G"),
    (r"V100", "V100-16GB"),
    (r"3090", "RTX-3090"),
)


def _device(said: Words) -> Device:
    for text in (said.own, said.base, said.source):
        for pattern, name in _CARDS:
            if re.search(pattern, text):
                return _PECULIAR[name]() if name in _PECULIAR else device(name)
    raise NotExpressedError("a device that is not named")


def _h100_of_96gb() -> Device:
    """An H100 with HBM2e: torchtitan's ``benchmarks/llama3_h100_202412_torchtitan.md``, PR 165."""
    whole = device("H100-SXM")
    return replace(whole, name="H100-SXM-96GB", memory_bytes=int(95.04 * 2**30), bandwidth=2.4e12)


_PECULIAR: dict[str, Callable[[], Device]] = {"H100-SXM-96GB": _h100_of_96gb}


def _guide(said: Words) -> Case:
    """transformers' guide to training on one GPU, of early 2022 (torch 1.10).

    Its trainer zeroed gradients instead of dropping them, and its AdamW went through the parameters
    one by one.
    """
    if "BERT-large" not in said.own:
        raise NotExpressedError("another model")
    _lacking(said, (r"8-?bit", "an optimizer with states of 8 bits"))
    batch, accumulation = said.number(r"bs(\d+)"), said.number(r"bs\d+x(\d+)", 1)
    half = said.has("fp16")
    return Case(
        Library.TRANSFORMERS,
        "BERT-large",
        _device(said),
        batch,
        said.number(r"seq (\d+)"),
        Peak.RESERVED,
        attention="written out",
        optimizer="adafactor_loop" if said.has("Adafactor") else "adamw_loop",
        precision=Precision.AMP_FLOAT16 if half else Precision.FLOAT32,
        checkpoint=_checkpoint(said),
        accumulation=accumulation,
        holds_gradients=True,
    )


# Whose configurations (``config_hub/finetune``) adapt every product; TinyLlama's since litgpt#1122,
# which set the number, too.
_LEAST_BATCH = 8
_ADAPTED_EVERYWHERE = {"TinyLlama", "Gemma-2B", "phi-2", "Phi-3-mini"}


def _litgpt_finetuning(said: Words) -> Case:
    """LitGPT's tables of fine-tuning: its configurations accumulate micro-batches to 8 at least."""
    name = _named(litgpt.SHAPES, said.own)
    adapters = None
    batch = said.number(r"mbs (\d+)")
    if rank := said.number(r"LoRA r(\d+)", 0):
        adapters = Adapters(rank, everywhere=name in _ADAPTED_EVERYWHERE)
    elif not said.has("full"):
        raise NotExpressedError("neither full fine-tuning nor LoRA")
    _lacking(said, (r"QLoRA|nf4", "quantized weights"), (r"\d ?x ?A10", "LitGPT's recipe for FSDP"))
    return Case(
        Library.LITGPT_2023 if "resource tables" in said.source else Library.LITGPT,
        name,
        _device(said),
        batch,
        said.number(r"seq<=(\d+)", 0) or said.number(r"longest seq (\d+)"),
        precision=Precision.TRUE_BFLOAT16,
        adapters=adapters,
        holds_gradients=batch < _LEAST_BATCH,
    )


def _litgpt_pretraining(said: Words) -> Case:
    """LitGPT's pretraining script, eager: 512 samples a step but where shards are (32)."""
    if not re.search(r"eager", said.own):
        raise NotExpressedError("compiled kernels")
    name = _named(litgpt.SHAPES, said.all)
    spread = _sharding(said, said.number(r"(?:DDP|ZeRO-3|FSDP) (\d+)", 1))
    sharded = spread.get("sharding") is Sharding.FSDP
    return Case(
        Library.LITGPT_PRETRAINING,
        name,
        _device(said),
        said.number(r"mbs (\d+)"),
        said.number(r"seq (\d+)"),
        optimizer="adamw_fused",
        precision=Precision.TRUE_BFLOAT16,
        holds_gradients=not sharded,
        **spread,  # type: ignore[arg-type]
    )


def _mesa(said: Words) -> Case:
    _lacking(said, (r"w/ Mesa", "compressed activations"))
    name = _named(dict.fromkeys(("DeiT-Ti", "DeiT-S", "DeiT-B")), said.own)
    return Case(
        Library.MESA,
        name,
        _device(said),
        said.number(r"bs (\d+)"),
        attention="written out",
        precision=Precision.AMP_FLOAT16,
        optimizer="adamw_loop",
    )


def _foundry(said: Words) -> Case:
    _lacking(said, (r"(?i)fp8", "products in 8 bits"))
    name = _named(mpt.SIZES, said.own.partition(",")[0].removeprefix("MPT"))
    return Case(
        Library.FOUNDRY,
        name,
        _device(said),
        said.number(r"mbs (\d+)"),
        said.number(r"seq (\d+)"),
        precision=Precision.SHARDED_BFLOAT16,
        checkpoint=_checkpoint(said),
        accumulation=said.number(r"mbs \d+ x (\d+)", 1),
        keeps_gathered=said.has("SHARD_GRAD_OP"),
        **_sharding(said, said.number(r", (\d+) [AH]100")),  # type: ignore[arg-type]
    )


def _nvidia(said: Words) -> Case:
    if "pretraining" in said.own:
        raise NotExpressedError("a head on masked tokens alone, padding left out")
    if "ResNet-50" not in said.own:
        raise NotExpressedError("another model")
    half = said.has("AMP")
    return Case(
        Library.NVIDIA,
        "ResNet-50",
        _device(said),
        said.number(r"bs (\d+)"),
        optimizer="momentum",
        precision=Precision.AMP_FLOAT16 if half else Precision.FLOAT32,
        channels_last=said.has("channels-last"),
    )


def _nanogpt(said: Words) -> Case:
    return Case(
        Library.NANOGPT,
        _named(dict.fromkeys(("GPT-2 124M",)), said.own),
        _device(said),
        said.number(r"bs (\d+)"),
        said.number(r"seq (\d+)"),
        attention="written out" if said.has("materialized") else "fused",
        precision=Precision.AMP_BFLOAT16,
        compiled=said.has("compile"),
    )


def _titan(said: Words) -> Case:
    compiled = said.has(r"torch\.compile")
    _lacking(
        said,
        (r"(?i)float8|fp8|fp4|mxfp", "products in 8 bits or fewer"),
        (r"\b[TCP]P\b|[234]D", "tensor, context or pipeline parallelism"),
    )
    if "nvfp4" in said.source:
        raise NotExpressedError("how its loss is chunked and what it recomputes are not known")
    return Case(
        Library.TITAN,
        _named(torchtitan.SIZES, said.all),
        _device(said),
        said.number(r"mbs (\d+)"),
        said.number(r"seq (\d+)"),
        Peak.RESERVED if "reserved" in said.remark else Peak.ALLOCATED,
        precision=Precision.SHARDED_BFLOAT16,
        checkpoint=_checkpoint(said),
        compiled=compiled,
        **_sharding(said, said.number(r"(\d+) (?:H100|A100|B200)")),  # type: ignore[arg-type]
    )


def _fms(said: Words) -> Case:
    _lacking(said, (r"[Ss]elective|SAC", "checkpointing of some blocks alone"))
    return replace(_titan(said), library=Library.FMS_FSDP, model=_named(torchtitan.SIZES, said.own))


_TUNE = ("+ torch.compile", "+ chunked cross entropy", "+ activation checkpointing")


def _tune(said: Words) -> Case:
    """torchtune's table, each of whose rows adds to the one before."""
    added = _TUNE.index(said.own) + 1 if said.own in _TUNE else 0
    _lacking(said, (r"LoRA", "torchtune's adapters"))
    if said.own.startswith("+") and not added:
        raise NotExpressedError(f"{said.own.removeprefix('+ ')}, on top of compiled kernels")
    return Case(
        Library.TUNE,
        _named(torchtitan.SIZES, said.all),
        _device(said),
        said.number(r"bs (\d+)"),
        said.number(r"bs \d+ x (\d+)"),
        optimizer="adamw_fused",
        precision=Precision.TRUE_BFLOAT16,
        compiled=added > 0,
        loss_chunks=8 if added > 1 else 1,
        checkpoint=Checkpoint.FULL if added > 2 else Checkpoint.NONE,
    )


_SOURCES: tuple[tuple[str, Callable[[Words], Case]], ...] = (
    (r"HF docs", _guide),
    (r"LitGPT thunder", _litgpt_pretraining),
    (r"LitGPT", _litgpt_finetuning),
    (r"Mesa", _mesa),
    (r"llm-foundry", _foundry),
    (r"NVIDIA", _nvidia),
    (r"nanoGPT", _nanogpt),
    (r"torchtitan", _titan),
    (r"fms-fsdp", _fms),
    (r"torchtune", _tune),
)
