"""Whole models and parts of other libraries: their outputs, ties, optimizers, checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch_optimizer
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

import planner
from tests.by_default import slow_but
from tests.scenes import DEEP, Answer, Apply, mlp
from tests.training import Scene, assert_same, measured_peak, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gpt2(**options: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        use_cache=False,
        loss_type="ForCausalLM",
        **options,
    )
    return transformers.GPT2LMHeadModel(config).train()  # type: ignore[no-any-return]


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, 50, (8, 16))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("attention", slow_but({"eager"}, ["sdpa", "eager"]))
def test_gpt2_with_dropout_and_tied_weights(attention: str) -> None:
    scene = Scene(lambda: gpt2(attn_implementation=attention), tokens)
    model = scene.model()
    plan = scene.plan(model, "recompute_all")
    patched = plan.apply(model)
    assert plan.recomputed
    assert isinstance(patched(**scene.call()), CausalLMOutputWithCrossAttentions)
    assert_same(train(scene, scene.model(), steps=2), train(scene, patched, steps=2))


def test_gpt2_within_the_least_budget() -> None:
    scene = Scene(gpt2, tokens, loss=lambda out: out.loss)
    model = scene.model()
    plan = scene.plan(model)
    measured = measured_peak(scene, plan.apply(model))
    assert measured <= plan.budget_bytes
    assert plan.peak_bytes == pytest.approx(measured, rel=0.02)
    assert measured < 0.8 * measured_peak(scene, scene.model())


def test_padding_is_a_question_of_the_inputs() -> None:
    def padded() -> dict[str, Tensor]:
        mask = torch.ones(8, 16, dtype=torch.long)
        mask[:, 12:] = 0
        return tokens() | {"attention_mask": mask}

    scene = Scene(gpt2, padded)
    model = scene.model()
    patched = scene.plan(model, "recompute_all").apply(model)
    assert_same(train(scene, scene.model()), train(scene, patched))
    call = padded()
    call["attention_mask"][:] = 1
    replanning = scene.plan(model, "recompute_all").apply(model, on_mismatch="replan")
    plain = scene.model()
    torch.manual_seed(3)
    expected = plain(**call).loss
    torch.manual_seed(3)
    assert torch.equal(replanning(**call).loss, expected)


def test_a_dataclass_comes_back_as_itself() -> None:
    def run(m: Any, x: Tensor) -> Answer:
        h = m.a(x)
        return Answer(h.square().mean(), [h, h.argmax(-1)])

    scene = Scene(lambda: Apply(run, a=mlp()), lambda: torch.randn(64, 16))
    model = scene.model()
    answer = scene.plan(model, "recompute_all").apply(model)(scene.call())
    assert isinstance(answer, Answer)
    assert answer.note == "fine"
    assert torch.equal(answer.hidden[1], answer.hidden[0].argmax(-1))
    assert torch.equal(answer.loss, scene.model()(scene.call()).loss)


def test_reentrant_checkpoints_of_the_user() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return checkpoint(m.b, h, use_reentrant=True).square().mean()

    scene = Scene(lambda: Apply(run, a=mlp(), b=mlp()), lambda: torch.randn(64, 16))
    with pytest.raises(planner.CaptureError, match="use_reentrant"):
        planner.fit(scene.model(), "1GB", inputs=scene.call())


def test_an_optimizer_of_a_third_party() -> None:
    def trajectory(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(7)
        optimizer = torch_optimizer.Lamb(model.parameters())
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            model(torch.randn(64, 16)).backward()
            optimizer.step()
        return list(model.state_dict().values())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch_optimizer still calls deprecated overloads
        model = DEEP.model()
        plan = planner.fit(model, "1GB", inputs=DEEP.call(), optimizer=torch_optimizer.Lamb)
        assert plan.optimizer == "Lamb"
        pairs = zip(trajectory(DEEP.model()), trajectory(plan.apply(model)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
