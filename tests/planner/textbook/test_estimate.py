"""The calculator: published claims, what it reads, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import planner
from planner.cli import cli
from planner.graphs.hardware.devices import Device

LLAMA_70B = {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "vocab": 128256}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["estimate", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("params", "gigabytes", "devices"),
    [("7B", 14, 1), ("70B", 140, 2), ("175B", 350, 5), ("700B", 1400, 18)],
)
def test_weights_alone_on_80_gb(params: str, gigabytes: int, devices: int) -> None:
    half, eighth, fourth = planner.estimate(params).weights
    assert (half.format, half.size_bytes, half.devices) == ("float16", gigabytes * 10**9, devices)
    assert (eighth.size_bytes, fourth.size_bytes) == (half.size_bytes / 2, half.size_bytes / 4)


def test_what_training_and_serving_really_need() -> None:
    found = planner.estimate("70e9", **LLAMA_70B, seq=4096, gpus=64)
    assert found.cache_bytes == 2 * 80 * 8 * 128 * 2 * 4096
    stage = {s.stage: s for s in found.stages}
    assert stage[0].devices["states"] is None
    assert stage[3].devices["states"] == 14  # 16 bytes x 70e9 / 80e9
    assert stage[3].devices["full"] > 14
    assert stage[3].devices["none"] is None


def test_a_long_cache_asks_for_more_devices_than_the_weights() -> None:
    found = planner.estimate("70B", **LLAMA_70B, seq=131072, batch=8)
    assert found.cache_bytes == 327_680 * 131072 * 8
    assert found.weights[0].serving_devices > found.weights[0].devices == 2
    assert found.weights[2].serving_devices == -(
        -(35 * 10**9 + found.cache_bytes) // (80 * 10**9 - 2**30)
    )


def test_a_stage_fits_what_its_least_number_says() -> None:
    for params in ("1B", "7B", "70B"):
        for row in planner.estimate(params).stages:
            least = row.devices["states"]
            if least is not None:
                at_least = planner.estimate(params, gpus=least, stage=row.stage)
                assert at_least.stages[0].state_bytes["ZeRO paper"] <= 80e9


def test_largest_model() -> None:
    """Table 2 of the ZeRO paper: 2, 7.6, 14.4 and 128 billion on 64 devices of 32 GB."""
    found = planner.estimate("1B", gpus=64, device="32GB")
    sizes = [round(s.largest_parameters / 1e9, 1) for s in found.stages]
    assert sizes == [2.0, 7.6, 14.4, 128.0]


def test_adapters_change_the_choice() -> None:
    whole, adapters = planner.estimate("70B"), planner.estimate("70B", trainable="20M")
    assert [s.devices["states"] for s in whole.stages] == [None, None, None, 14]
    assert [s.devices["states"] for s in adapters.stages] == [None, None, None, 2]
    sent = [s.moved_bytes for s in adapters.stages]
    assert sent[3] > 1000 * sent[2]


def test_a_device_of_the_table() -> None:
    found = planner.estimate("700B", device="a100 80gb")
    assert found.device == "A100-80GB"
    assert 79 * 2**30 < found.memory_bytes < 80 * 2**30
    assert found.weights[0].devices == 17  # an "80 GB" card holds 85e9 bytes


def test_a_module_is_counted_with_its_frozen_and_tied_parameters() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    found = planner.estimate(model=model).architecture
    assert (found.parameters, found.trainable) == (120, 110)


def test_a_spec_is_built_on_meta(tmp_path: Path, forget_imports: None) -> None:
    source = "from torch import nn\ndef huge():\n    return nn.Linear(1_000_000, 1_000_000)\n"
    (tmp_path / "huge.py").write_text(source)
    result = run("--model", f"{tmp_path}/huge.py:huge", "--json")
    assert json.loads(result.stdout)["architecture"]["parameters"] == 10**12 + 10**6


def test_a_transformers_config(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    found = planner.estimate(config=tmp_path / "config.json", seq=128)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    a = found.architecture
    assert a.parameters == sum(p.numel() for p in model.parameters())
    assert (a.layers, a.hidden, a.heads, a.kv_heads, a.width) == (3, 64, 4, 2, 16)
    assert found.cache_token_bytes == 2 * 3 * 2 * 16 * 2
    assert [row.recompute for row in found.activations] == ["none", "selective", "full"]


def test_activations_add_up() -> None:
    found = planner.estimate("70B", **LLAMA_70B, seq=4096, attention="materialized")
    none, selective, full = found.activations
    core = none.layer_bytes - selective.layer_bytes
    assert core == (4 + 2) * 64 * 4096**2  # softmax in float32, and a copy in 16 bits
    assert none.total_bytes - selective.total_bytes == 80 * core
    assert none.total_bytes - full.total_bytes == 80 * (none.layer_bytes - full.layer_bytes)
    assert full.layer_bytes == 4 * 4096 * 8192
    casts = 2 * (70 * 10**9 - 128256 * 8192)
    assert {row.cast_bytes for row in found.activations} == {casts}
    logits = 4096 * 128256
    assert none.peak_bytes - none.total_bytes == 8 * logits
    assert selective.peak_bytes - selective.total_bytes >= core - 4 * logits  # a core made again


def test_fused_attention_writes_no_matrices() -> None:
    none, selective, _ = planner.estimate("70B", **LLAMA_70B, seq=4096).activations
    written = planner.estimate("70B", **LLAMA_70B, seq=4096, attention="materialized")
    assert none.layer_bytes == selective.layer_bytes
    assert (
        none.total_bytes < written.activations[1].total_bytes < written.activations[0].total_bytes
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of params, a model and a config, found 0"),
        ({"params": 1, "model": "m.py:f"}, "expected one of params, a model and a config, found 2"),
        ({"params": 0}, "params: 0 is not a positive whole number such as 70e9"),
        ({"params": "-7B"}, "params: '-7B' is not a positive"),
        ({"params": "many"}, "params: 'many' is not a positive"),
        ({"params": ""}, "params: '' is not a positive"),
        ({"params": float("nan")}, "params: nan is not a positive"),
        ({"params": True}, "params: True is not a positive"),
        ({"params": 1.5}, r"params: 1\.5 is not a positive"),
        ({"params": "1B", "trainable": "2B"}, "2,000,000,000 trainable of 1,000,000,000 param"),
        ({"params": "1B", "layers": -3}, "layers is -3: expected a positive whole number"),
        ({"params": "1B", "seq": 0}, "seq is 0: expected a positive whole number"),
        ({"params": "1B", "gpus": 0}, "gpus is 0: expected a positive whole number"),
        ({"params": "1B", "batch": 1.5}, r"batch is 1\.5: expected a positive whole number"),
        ({"params": "1B", "stage": 4}, "unknown stage 4; valid: 0, 1, 2, 3"),
        ({"params": "1B", "precision": "fp8"}, "unknown precision 'fp8'; valid: bfloat16, float1"),
        (
            {"params": "1B", "family": "opt"},
            "unknown family 'opt'; valid: gpt, llama, bert, vit, t5",
        ),
        ({"params": "1B", "attention": "flash"}, "unknown attention 'flash'; valid: fused, mater"),
        ({"params": "1B", "intermediate": 0}, "intermediate is 0: expected a positive whole num"),
        ({"params": "1B", "optimizer": "adamm"}, "unknown optimizer 'adamm'; valid: adam, adamw"),
        ({"params": "1B", "hidden": 100, "heads": 3}, "100 does not divide among 3 heads: give he"),
        ({"params": "1B", "heads": 8, "kv_heads": 3}, "8 heads do not divide among 3 kv heads"),
        ({"params": "1B", "device": "1GB"}, "a device of 1,000,000,000 bytes is all taken by its"),
        ({"config": "/nowhere.json"}, "/nowhere.json is not a readable JSON configuration"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(planner.BadEstimate, match=message):
        planner.estimate(**arguments)


def test_an_unknown_device_lists_the_valid_ones() -> None:
    with pytest.raises(planner.UnknownDevice, match=r"unknown device 'TPU'; known: cpu, .*80GB"):
        planner.estimate("7B", device="TPU")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_configs_that_are_none(tmp_path: Path, text: str) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(planner.BadEstimate, match=r"config\.json"):
        planner.estimate(config=tmp_path / "config.json")


def test_the_tables(golden: Callable[[str, str], None]) -> None:
    golden("estimate_7b.txt", str(planner.estimate("7.5B", gpus=64)))
    found = planner.estimate("70B", **LLAMA_70B, seq=4096, gpus=64, device="A100-80GB")
    golden("estimate_70b.txt", str(found))


def test_the_command(tmp_path: Path) -> None:
    result = run("--params", "7.5e9", "--gpus", 64)
    assert (result.exit_code, result.stdout) == (0, f"{planner.estimate('7.5B', gpus=64)}\n")
    answers = json.loads(run("--params", "70B", "--stage", 3, "--json").stdout)
    assert [row["stage"] for row in answers["stages"]] == [3]
    assert answers["weights"][0]["devices"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--params", "0"), "Error: params: '0' is not a positive whole number"),
        (("--params", "7B", "--device", "TPU"), "Error: unknown device 'TPU'; known: cpu"),
        (("--params", "7B", "--layers", "-1"), "Error: layers is -1"),
        ((), "Error: expected one of params, a model and a config"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)


def test_a_device_of_ones_own() -> None:
    mine = Device("mine", {"float32": 1e12}, 20 * 10**9, 1e11, reserve_bytes=10**9)
    found = planner.estimate("1B", device=mine)
    assert (found.device, found.memory_bytes, found.reserve_bytes) == ("mine", 20 * 10**9, 10**9)
