"""What training without a plan holds is predicted to the byte, as the profiler counts it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import transformers as hf
from torch import Tensor, nn

import planner
from planner.graphs import schedule_from_order, simulate
from planner.graphs.capture.training_step import capture
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of
from tests.by_default import slow_but
from tests.planner.verification.compositions import FUNCTIONS, WIDTH, Composition, drawn


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


def critic() -> tuple[nn.Module, dict[str, Tensor]]:
    """Views that are written to: what instance norm returns, by an activation in place."""
    spectral = nn.utils.parametrizations.spectral_norm
    model = Convolved()
    model.layers = nn.Sequential(
        spectral(nn.Conv2d(3, 16, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True),
        spectral(nn.Conv2d(16, 32, 4, 2, 1)), nn.InstanceNorm2d(32, affine=True),
        nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(32, 1, 4),
    )  # fmt: skip
    return model, {"x": torch.randn(8, 3, 32, 32)}


class Parts(nn.Module):
    """A result put together from parts, one of them changed again through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        whole = torch.empty(len(x), 128)
        whole[:, :64] = h = self.inner(x)
        whole[:, 64:] = h.sin()
        whole.view(-1, 8)[::2].sigmoid_()
        return {"loss": self.outer(whole).square().mean()}


def parts() -> tuple[nn.Module, dict[str, Tensor]]:
    return Parts(), {"x": torch.randn(512, 64)}


class Written(nn.Module):
    """A wide layer that is changed where it lies, one way or another; only its mean goes on."""

    def __init__(self, change: Callable[[Tensor], Tensor], *, frozen: bool) -> None:
        super().__init__()
        self.wide, self.last = nn.Linear(64, 1024), nn.Linear(1024, 8)
        self.change, self.frozen = change, frozen

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.frozen):
            x = self.change(self.wide(x)).view(-1, 4, 1024).mean(1)
        return self.last(x).square().mean()


def _centred(x: Tensor) -> Tensor:
    x -= x.mean()
    return x


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a module": nn.SiLU(inplace=True),
    "a function, by position": lambda x: nn.functional.dropout(x, 0.1, True, True),
    "a statement": _centred,
    "not in place": lambda x: x - x.mean(),
    "methods": lambda x: x.mul_(2).add_(1).clamp_(0),
    "a window": lambda x: x.clamp_(-1, 1),
    "out=": lambda x: torch.mul(x, 2, out=x) if not x.requires_grad else x,
}


def measured_peak(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    torch.set_num_threads(1)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        output = model(**inputs)  # held to the end of the step, as in a user's loop
        loss = output if isinstance(output, Tensor) else output["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    step()
    model.zero_grad(set_to_none=True)
    return measure_peak(step, torch.device("cpu")).peak_bytes


@pytest.mark.parametrize("build", [gpt2, bert, llama, cnn, critic, parts])
def test_the_peak_of_eager_training_is_predicted(
    build: Callable[[], tuple[nn.Module, dict[str, Any]]],
) -> None:
    model, inputs = build()
    measured = measured_peak(model, inputs)
    plan = planner.fit(model, "1GB", inputs=inputs, optimizer=None)
    assert plan.eager_peak_bytes is not None
    assert plan.eager_peak_bytes >= plan.plain_peak_bytes
    predicted = plan.eager_peak_bytes - plan.graph.resident_bytes
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_written_in_place_is_held_once(
    change: Callable[[Tensor], Tensor], frozen: bool
) -> None:
    """Neither is a gradient that is a view added to in place, for it holds what it is of."""
    model, inputs = Written(change, frozen=frozen), {"x": torch.randn(2048, 64)}
    measured = measured_peak(model, inputs)
    found = capture(model, inputs, optimizer=None)
    assert found.eager_peak_bytes is not None
    predicted = found.eager_peak_bytes - found.graph.resident_bytes
    assert predicted == pytest.approx(measured, rel=0.001)


def _logits(out: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.flatten(0, 1), torch.zeros(512, dtype=torch.long))


@pytest.mark.parametrize(
    ("model", "x", "loss"),
    [
        (
            nn.Sequential(nn.Embedding(999, 64), nn.Linear(64, 999)),
            torch.ones(8, 64).long(),
            _logits,
        ),
        (
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 32, 3)),
            torch.randn(4, 3, 24, 24),
            lambda out: out.square().mean(),
        ),
    ],
)
def test_with_a_loss_beside_the_model_its_output_is_held(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> None:
    plan = planner.fit(model, "1GB", inputs=x, optimizer=None, loss=loss)
    assert plan.eager_peak_bytes is not None

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(x)
        loss(output).backward()  # type: ignore[no-untyped-call]
        del output

    step()
    model.zero_grad(set_to_none=True)
    measured = measure_peak(step, torch.device("cpu")).peak_bytes
    assert plan.eager_peak_bytes - plan.graph.resident_bytes == pytest.approx(measured, rel=0.02)


def test_it_is_said_and_saved(tmp_path: Any) -> None:
    model, inputs = gpt2()
    plan = planner.fit(model, "1GB", inputs=inputs)
    assert plan.eager_peak_bytes is not None
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json").eager_peak_bytes == plan.eager_peak_bytes  # type: ignore[union-attr]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("build", "path"),
    [(gpt2, "transformer.h"), (bert, "bert.encoder.layer"), (llama, "model.layers")],
)
def test_the_peak_of_checkpointed_blocks_is_predicted(
    build: Callable[[], tuple[nn.Module, dict[str, Any]]], path: str, every: int
) -> None:
    """As ``gradient_checkpointing_enable`` does it, run by torch."""
    model, inputs = build()
    graph = capture(model, inputs, optimizer=None).eager
    assert graph is not None
    schedule = schedule_from_order(graph, order_of(graph, find_blocks(graph)[::every]))
    predicted = simulate(graph, schedule).peak_bytes - graph.resident_bytes
    plain = measured_peak(model, inputs)
    for block in [*model.get_submodule(path).children()][::every]:
        block.forward = functools.partial(  # type: ignore[method-assign]
            torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False
        )
    measured = measured_peak(model, inputs)
    assert measured < 0.9 * plain
    assert predicted == pytest.approx(measured, rel=0.02)


SINGLE = [[name] for name in FUNCTIONS]


@pytest.mark.parametrize("names", slow_but(SINGLE[::2], SINGLE) + drawn(10, seed=7), ids="-".join)
def test_the_peak_of_what_functions_hold_is_predicted(names: list[str]) -> None:
    """Temporaries of a backward function are held until it returns."""
    model, x = Composition(names), torch.randn(512, WIDTH)
    measured = measured_peak(model, {"x": x})
    found = capture(model, {"x": x}, optimizer=None)
    assert found.eager_peak_bytes is not None
    predicted = found.eager_peak_bytes - found.graph.resident_bytes
    assert predicted == pytest.approx(measured, rel=0.02)
