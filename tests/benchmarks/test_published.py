"""Published measurements as cases: what rows are read as, what is predicted of them, and how."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.models import litgpt, mpt, torchtitan
from benchmarks.published.__main__ import Compared, medians, rows_of
from benchmarks.published.case import Adapters, Case, Library, Peak, Precision, Sharding
from benchmarks.published.keeping import INDEX_COPY, SOFTMAX, keeping
from benchmarks.published.predicting import predicted
from benchmarks.published.reading import NotExpressedError, case_of
from planner.graphs import Graph, Op, Phase, Value, plain_schedule, simulate
from planner.graphs.hardware.devices import device
from planner.sharding.recipes import Checkpoint

LENGTH = 64


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = litgpt.Shape(2, 64, 4, 512, 128, groups=2)
    monkeypatch.setitem(litgpt.SHAPES, "TinyLlama", shape)
    monkeypatch.setitem(litgpt.SHAPES, "Llama-2-7B", replace(shape, groups=None))
    monkeypatch.setitem(mpt.SIZES, "125m", mpt.Sizes(3, 64, 4))
    sizes = torchtitan.Sizes(3, 64, 4, 2, 512, 128)
    monkeypatch.setitem(torchtitan.SIZES, "Llama-3-8B", sizes)


def read(source: str, configuration: str, remark: str = "", *others: str) -> Case:
    rows = [
        {"source": source, "configuration": text, "remark": remark}
        for text in (configuration, *others)
    ]
    return case_of(rows[0], rows)


def test_what_rows_say_is_read() -> None:
    case = read("MosaicML llm-foundry", "MPT-13b, 64 A100-40GB, seq 4096, mbs 3 x 7, FSDP, AC full")
    assert (case.model, case.device.name, case.batch, case.length) == ("13b", "A100-40GB", 3, 4096)
    assert (case.ranks, case.shard_ranks, case.accumulation) == (64, 64, 7)
    assert case.recipe == "sharded over all, full checkpointing, 7 micro-batches"
    alone = "Llama-2-7B, 8 H100-96, seq 2048, mbs 8, FSDP2, full AC"
    case = read("torchtitan PR", "same, SAC", "", alone)
    assert (case.checkpoint, case.batch, case.ranks) == (Checkpoint.SELECTIVE, 8, 8)
    assert case.device.bandwidth == 2.4e12
    case = read("IBM fms-fsdp", "Llama-2-7b, 128 A100-80, seq 4096, mbs 2, HSDP 8, AC none")
    assert (case.shard_ranks, case.sharding) == (8, Sharding.HSDP)
    case = read("LitGPT thunder (A100-40)", "same, DDP 8, eager", "", "TinyLlama, mbs 4, seq 2048")
    assert (case.sharding, case.ranks, case.model) == (Sharding.DDP, 8, "TinyLlama")
    case = read("LitGPT config_hub (A10G)", "phi-2 LoRA r8 qv, mbs 4, seq<=512")
    assert case.adapters == Adapters(8, everywhere=True)
    case = read("HF docs (V100-16)", "BERT-large seq 128 bs2x4 GC fp16", "nvidia-smi/reserved")
    assert (case.accumulation, case.checkpoint, case.group) == (4, Checkpoint.FULL, "reserved")
    case = read("torchtune (A100-80)", "+ chunked cross entropy", "", "Llama-3.2-1B, bs 2 x 4096")
    assert (case.loss_chunks, case.compiled, case.model) == (8, True, "Llama-3.2-1B")


@pytest.mark.parametrize(
    ("source", "configuration", "why"),
    [
        ("Nobody", "a model", "a source whose habits are not known"),
        ("MosaicML llm-foundry", "Dolly-12b, 8 A100-40GB", "another model: Dolly-12b"),
        ("NVIDIA", "BERT-large pretraining, bs 256", "a head on masked tokens alone"),
        ("LitGPT thunder", "TinyLlama, 1 A100-40, thunder", "compiled kernels"),
        ("torchtune (A100-80)", "+ activation offloading", "on top of compiled kernels"),
        ("torchtitan", "Llama-3.1-8B, 64 H100-96, seq 8192, mbs 1, FSDP, TP 2", "parallelism"),
        ("IBM fms-fsdp", "Llama-2-13b, selective AC", "some blocks alone"),
        ("LitGPT (A10G)", "phi-2 QLoRA r8, mbs 4, seq<=512", "quantized weights"),
        ("Mesa", "DeiT-Ti w/ Mesa, bs 128", "compressed activations"),
        ("nanoGPT (A100-40)", "GPT-2 124M, seq 1024", "no bs"),
    ],
)
def test_what_is_missing_is_said(source: str, configuration: str, why: str) -> None:
    with pytest.raises(NotExpressedError, match=why):
        read(source, configuration)


def test_rows_are_grouped_and_few_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = ["source", "configuration", "gib_published", "remark"]
        writer = csv.writer(file)
        writer.writerow([*columns, "samples_or_tokens_per_second_per_gpu"])
        writer.writerow(["LitGPT (A10G)", "TinyLlama full, mbs 4, seq<=512", "0.1", "", ""])
        writer.writerow(["Nobody", "large", "", "", "3"])
    row, missing = rows_of(path)
    assert isinstance(row, Compared)
    assert missing == "Nobody: large: a source whose habits are not known"
    assert (row.precision, row.peak) == ("bfloat16, parameters too", "allocated, no autocast")
    (said,) = medians([row])
    assert said.startswith("memory, allocated, no autocast: 1 rows, too few for a median: TinyL")
    (said,) = medians([row] * 5)
    assert said.startswith("memory, allocated, no autocast: 5 rows, median")


LITGPT = Case(
    Library.LITGPT, "TinyLlama", device("A100-40GB"), 4, LENGTH,
    precision=Precision.TRUE_BFLOAT16,
)  # fmt: skip


@pytest.mark.slow
def test_what_is_trained_and_how_shows_in_the_prediction() -> None:
    plain = predicted(LITGPT)
    accumulating = predicted(replace(LITGPT, holds_gradients=True))
    adapted = predicted(replace(LITGPT, adapters=Adapters(4)))
    reserved = predicted(replace(LITGPT, peak=Peak.RESERVED))
    checkpointed = predicted(replace(LITGPT, checkpoint=Checkpoint.FULL))
    assert adapted.peak_gib < plain.peak_gib < accumulating.peak_gib
    assert reserved.peak_gib > plain.peak_gib
    assert checkpointed.peak_gib < plain.peak_gib
    assert checkpointed.per_second < plain.per_second


@pytest.mark.slow
def test_recipes_of_several_devices() -> None:
    mpt_125m = Case(
        Library.FOUNDRY, "125m", device("A100-40GB"), 4, LENGTH,
        precision=Precision.SHARDED_BFLOAT16, sharding=Sharding.FSDP, ranks=8, shard_ranks=8,
    )  # fmt: skip
    plain, full = predicted(mpt_125m), predicted(replace(mpt_125m, checkpoint=Checkpoint.FULL))
    assert full.peak_gib < plain.peak_gib
    assert full.per_second < plain.per_second
    titan = replace(mpt_125m, library=Library.TITAN, model="Llama-3-8B")
    held = [predicted(replace(titan, checkpoint=kind)).peak_gib for kind in Checkpoint]
    assert held[0] > held[1] > held[2]
    shared = replace(LITGPT, sharding=Sharding.DDP, ranks=2, holds_gradients=True)
    assert predicted(shared).peak_gib > predicted(replace(LITGPT, holds_gradients=True)).peak_gib


def test_what_autograd_keeps_for_its_shape_lives_until_backward() -> None:
    names = (("_softmax", "f"), ("g", "h"), ("_softmax_backward_data", "b"))
    ops = tuple(
        Op(
            label, f"aten.{name}.default", (i,), (i + 1,),
            phase=Phase.BACKWARD if "backward" in name else Phase.FORWARD,
        )
        for i, (name, label) in enumerate(names)
    )  # fmt: skip
    first = Op("make", "make", (), (0,))
    graph = Graph((first, *ops), tuple(Value(f"v{i}", 10) for i in range(4)), frozenset({3}))
    softmax = {key: value for key, value in SOFTMAX.items() if "log" not in key}
    kept = keeping(graph, softmax)
    assert simulate(graph, plain_schedule(graph)).peak_bytes == 20
    assert simulate(kept, plain_schedule(kept)).peak_bytes == 30
    with pytest.raises(ValueError, match=r"1 aten\.index_copy.* and 0 aten\.index_select"):
        keeping(
            replace(graph, ops=(replace(first, target=next(iter(INDEX_COPY))), *ops)), INDEX_COPY
        )


@pytest.mark.parametrize("on", [litgpt.ON_ATTENTION, litgpt.EVERYWHERE])
def test_adapters_alone_are_trained(on: frozenset[str]) -> None:
    torch.manual_seed(0)
    model = litgpt.LitGPT(litgpt.SHAPES["TinyLlama"], LENGTH, litgpt.Adapters(4, on))
    for values in (*model.parameters(), *model.buffers()):
        if values.is_floating_point():
            torch.nn.init.normal_(values, std=0.1)
    ids = torch.randint(0, 512, (2, LENGTH))
    loss = model(ids, ids)["loss"]
    loss.backward()
    assert loss.isfinite()
    trained = {path for path, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(path.endswith((".down", ".up")) for path in trained)
    assert ("lm_head.down" in trained) == ("head" in on)
