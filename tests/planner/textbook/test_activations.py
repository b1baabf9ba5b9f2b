"""What layers keep: the published sums, and what captured graphs of every family hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import planner
from benchmarks import estimate
from benchmarks.estimate import CARDS, SMALL, TOLERANCE, Row, Size, compared, held
from planner.graphs import schedule_from_order
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of
from planner.textbook.activations import (
    MATERIALIZED,
    WIDTHS,
    Layer,
    Tokens,
    Widths,
    core_bytes,
    layer_bytes,
    loss_bytes,
)
from planner.textbook.families import FAMILIES
from planner.textbook.formulas import Recompute, layer_activations


@pytest.fixture(scope="module", autouse=True)
def captured_once() -> Iterator[None]:
    """Let tests that ask for the same step share its capture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "captured", functools.cache(estimate.captured))
        yield


GPT3 = Layer(12288, 96, 12288, 12288, 4 * 12288, joined=True, dropout=True, attention_dropout=True)
LLAMA_8B = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "vocab": 128256, "seq": 4096}


def test_in_16_bits_throughout_it_is_the_published_layer() -> None:
    """Korthikanti et al.: 34 sbh + 5abs^2; a fused kernel keeps each row's sum instead."""
    tokens, half, rows = Tokens(2048, 4), Widths(2, 2), 96 * 2048 * 4
    shape = {"seq": 2048, "batch": 4, "hidden": 12288, "heads": 96}
    selective, whole = (
        layer_activations(r, **shape) for r in (Recompute.SELECTIVE, Recompute.NONE)
    )
    assert layer_bytes(GPT3, tokens, half) == selective + 4 * rows
    assert layer_bytes(GPT3, tokens, half, MATERIALIZED) == whole


def test_grouped_heads_have_no_fused_kernel_in_float32() -> None:
    grouped = Layer(64, 8, 64, 16, 128)
    tokens = Tokens(32, 2)
    assert core_bytes(grouped, tokens, tokens, WIDTHS["bfloat16"], "fused") == 0
    assert core_bytes(grouped, tokens, tokens, WIDTHS["float32"], "fused") == 4 * 8 * 32 * 64


def test_heads_that_fit_no_fused_kernel_are_written_out() -> None:
    """As ViT with six heads of 65, which flash pads in 16 bits and no kernel takes in float32."""
    size = estimate.vit(
        "heads of 65", 2, hidden_size=390, intermediate_size=1001, num_hidden_layers=2,
        num_attention_heads=6, image_size=120, patch_size=8,
    )  # fmt: skip
    for precision in ("bfloat16", "float32"):
        row = compared(size, "A100-80GB", precision)
        assert row.activation_error_fraction == pytest.approx(0, abs=TOLERANCE)
        assert row.peak_error_fraction == pytest.approx(0, abs=TOLERANCE)


def test_a_loss_in_16_bits_is_cast_late() -> None:
    """8 bytes kept of a logit and 4 of its gradients; float32 logits 8 and 8."""
    one = Tokens(1, 1)
    assert loss_bytes(1, one, WIDTHS["bfloat16"], upcast=False) == (8, 4)
    assert loss_bytes(1, one, WIDTHS["float32"], upcast=False) == (8, 8)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", SMALL, ids=lambda size: size.family)
def test_it_agrees_with_the_captured_graph(size: Size, precision: str) -> None:
    _agrees(compared(size, CARDS[0], precision))


@pytest.mark.parametrize("size", SMALL[:2], ids=lambda size: size.family)
def test_it_agrees_with_attention_written_out(size: Size) -> None:
    _agrees(compared(size, CARDS[1], "bfloat16", MATERIALIZED))


def _agrees(row: Row) -> None:
    assert row.estimated_activation_bytes == pytest.approx(
        row.captured_activation_bytes, rel=TOLERANCE / 2
    )
    assert row.estimated_peak_bytes == pytest.approx(row.captured_peak_bytes, rel=TOLERANCE / 2)


def test_llama_3_8b_by_its_counts_alone() -> None:
    """Captured on meta for an A100 under autocast: 46.6 GiB of activations, 50.5 at the peak."""
    row = planner.estimate("8.03B", **LLAMA_8B).activations[0]
    assert row.total_bytes / 2**30 == pytest.approx(46.6, rel=0.01)
    assert row.peak_bytes / 2**30 == pytest.approx(50.5, rel=0.01)


def test_counts_and_a_model_say_the_same() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(hidden_size=64, intermediate_size=176, num_hidden_layers=3, **sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    by_model = planner.estimate(model=model, seq=32)
    by_counts = planner.estimate(
        by_model.architecture.parameters, layers=3, hidden=64, heads=4, kv_heads=2, vocab=512,
        seq=32,
    )  # fmt: skip
    assert by_model.family == by_counts.family == "llama"
    found = [e.activations[0].total_bytes for e in (by_model, by_counts)]
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.parametrize("family", [f.name for f in FAMILIES.values() if not f.counted])
def test_what_counts_do_not_describe_is_refused(family: str) -> None:
    with pytest.raises(planner.BadEstimate, match=f"the family {family} needs a model or a config"):
        planner.estimate("8B", **LLAMA_8B, family=family)


def test_a_count_that_leaves_nothing_for_the_mlp_is_refused() -> None:
    with pytest.raises(planner.BadEstimate, match="leave nothing for the MLP of 32 layers of 4096"):
        planner.estimate("1B", **LLAMA_8B)
    assert planner.estimate("1B", **LLAMA_8B, intermediate=1).activations
    without = {**LLAMA_8B, "seq": None}
    assert planner.estimate("1B", **without).cache_token_bytes  # nothing is asked of layers


def test_frozen_parameters_are_said_to_be_taken_for_trained_ones() -> None:
    assert "trained whole" in str(planner.estimate("8.03B", **LLAMA_8B, trainable="20M"))
    assert "trained whole" not in str(planner.estimate("8.03B", **LLAMA_8B))


def test_another_kind_of_model_is_not_taken_for_a_known_one(tmp_path: Path) -> None:
    from transformers import OPTConfig

    config = OPTConfig(
        num_hidden_layers=2, hidden_size=64, ffn_dim=128, num_attention_heads=2, vocab_size=512,
        word_embed_proj_dim=64,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    found = planner.estimate(config=tmp_path / "config.json", seq=32)
    assert found.activations == ()
    assert "layers of 'opt' are not known here" in str(found)
    named = planner.estimate(
        config=tmp_path / "config.json", seq=32, family="gpt", intermediate=128
    )
    assert named.activations[0].total_bytes > 0


def test_an_unknown_activation_function_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig

    config = BertConfig(num_hidden_layers=1, hidden_act="mish")
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    with pytest.raises(planner.BadEstimate, match="activation function is 'mish'; known: gelu"):
        planner.estimate(config=tmp_path / "config.json", seq=32)


def test_what_is_no_language_model_has_no_logits() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model: nn.Module = BertForSequenceClassification(BertConfig(num_hidden_layers=2))
    found = planner.estimate(model=model, seq=128, batch=4)
    assert found.architecture.logits is False
    assert found.activations[0].total_bytes < 4 * 128 * 30522 * 8


@pytest.mark.parametrize("size", SMALL, ids=lambda size: size.family)
def test_full_recomputation_holds_what_checkpointed_blocks_do(size: Size) -> None:
    """Float32: under autocast an estimate counts casts to the end of forward."""
    model, graph = estimate.captured(size, CARDS[0], "float32", "fused")
    schedule = schedule_from_order(graph, order_of(graph, find_blocks(graph)))
    peak = held(graph, schedule)[1]
    full = planner.estimate(
        model=model, seq=size.seq, decoder_seq=size.decoder_seq, batch=size.batch,
        precision="float32",
    ).activations[2]  # fmt: skip
    assert full.peak_bytes == pytest.approx(peak, rel=0.15)
