"""What training without a plan holds is predicted to the byte, as the profiler counts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import planner
from planner.graphs.torch_api.allocation_records import measure_peak


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.GPT2Config(
        n_layer=2, n_embd=64, n_head=2, n_positions=64, vocab_size=512, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    ids = torch.randint(512, (8, 64))
    return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        vocab_size=512, max_position_embeddings=64, hidden_dropout_prob=0.15,
    )  # fmt: skip
    ids = torch.randint(512, (8, 64))
    return hf.BertForMaskedLM(config), {"input_ids": ids, "labels": ids}


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(512, (8, 64))
    return hf.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


class Convolved(nn.Module):
    """A small CNN with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(x).square().mean()}


def cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    return Convolved(), {"x": torch.randn(8, 3, 32, 32)}


@pytest.mark.parametrize("build", [gpt2, bert, llama, cnn])
def test_the_peak_of_eager_training_is_predicted(
    build: Callable[[], tuple[nn.Module, dict[str, Any]]],
) -> None:
    torch.set_num_threads(1)
    model, inputs = build()

    def step() -> float:
        model.zero_grad(set_to_none=True)
        output = model(**inputs)  # held to the end of the step, as in a user's loop
        output["loss"].backward()
        return float(output["loss"].detach())

    step()
    model.zero_grad(set_to_none=True)
    measured = measure_peak(step, torch.device("cpu")).peak_bytes
    plan = planner.fit(model, "1GB", inputs=inputs, optimizer=None)
    assert plan.eager_peak_bytes is not None
    assert plan.eager_peak_bytes >= plan.plain_peak_bytes
    predicted = plan.eager_peak_bytes - plan.graph.resident_bytes
    assert predicted == pytest.approx(measured, rel=0.02)


def test_it_is_said_and_saved(tmp_path: Any) -> None:
    model, inputs = gpt2()
    plan = planner.fit(model, "1GB", inputs=inputs)
    assert plan.eager_peak_bytes is not None
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json").eager_peak_bytes == plan.eager_peak_bytes  # type: ignore[union-attr]
