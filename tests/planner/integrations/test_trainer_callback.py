"""transformers' Trainer, TRL's SFTTrainer and PEFT: in less memory, and the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.stubs import stubs
from planner import BadRequest
from planner.integrations import PlannerCallback, plan_at_first_batch, plan_of
from planner.running.states_on_host import storages_on_host
from planner.solvers import Limits
from tests.planner.integrations.trainers import (
    LONGEST,
    QUICK,
    arguments,
    gpt2,
    llama,
    logged,
    padded,
    same,
    sentences,
    transformers,
)

pytest.importorskip("accelerate")
HOST = {"states": True, "bytes_per_second": 4e9}
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def trained(model: nn.Module, args: Any, callback: Any = None, **changed: Any) -> Any:
    said = {
        "data_collator": padded,
        "train_dataset": sentences(18),
        "eval_dataset": sentences(6, seed=1),
        "callbacks": [callback] if callback else [],
        **changed,
    }
    trainer = transformers.Trainer(model, args, **said)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_states_of_the_optimizer_wait_on_the_host(tmp_path: Path) -> None:
    """Under gradient accumulation, clipping and a schedule, and when training goes on."""
    args, budget = arguments(tmp_path, max_grad_norm=0.5), 300_000
    plain = trained(gpt2(), args)
    callback = PlannerCallback(budget, offload=HOST, **QUICK, limits=Limits(1.0))
    planned = trained(gpt2(), args, callback)
    check_less_memory(callback, budget)
    assert callback.plan is not None
    assert callback.plan.states is not None
    assert storages_on_host(planned.optimizer.optimizer)
    assert logged(planned) == logged(plain)
    assert same(planned.model, plain.model)
    for trainer in (plain, planned):
        torch.manual_seed(7)
        trainer.train()
    assert same(planned.model, plain.model)


def test_states_are_not_promised_to_an_optimizer_that_is_not_told(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    for wrong in (None, "adamw", torch.optim.AdamW):
        with pytest.raises(BadRequest, match="pass the one that is used as optimizer="):
            plan_at_first_batch(model, "1GB", offload=HOST, optimizer=wrong)
    optimizer.scaler = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined] # as accelerate's
    with pytest.raises(BadRequest, match="an Accelerator that scales gradients"):
        plan_at_first_batch(model, "1GB", offload=HOST, optimizer=optimizer)
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(BadRequest, match="cannot take its step a part"):
        plan_at_first_batch(model, "1GB", offload=HOST, optimizer=lbfgs)
    for said, reason in (
        ({"offload": {"states": "yes"}}, "expected True or False"),
        ({"offload": True, "engine": "inductor"}, "offload= is not for engine='inductor'"),
        ({"loss_chunks": True}, "expected a number from 1 on"),
    ):
        with pytest.raises(BadRequest, match=reason):
            PlannerCallback("1GB", **said)  # type: ignore[arg-type]


def check_less_memory(callback: PlannerCallback, budget_bytes: int) -> None:
    assert callback.plan is not None
    assert callback.plan.peak_bytes <= budget_bytes < callback.plan.plain_peak_bytes


@pytest.mark.parametrize(
    ("make", "budget", "bf16"),
    [
        (gpt2, 445_000, True),
        pytest.param(gpt2, 495_000, False, marks=pytest.mark.slow),
        pytest.param(llama, 355_000, True, marks=pytest.mark.slow),
        pytest.param(llama, 365_000, False, marks=pytest.mark.slow),
    ],
)
def test_a_trainer_is_the_same_in_less_memory(
    tmp_path: Path, make: Callable[[], nn.Module], budget: int, bf16: bool
) -> None:
    args = arguments(tmp_path, bf16=bf16)
    plain = trained(make(), args)
    callback = PlannerCallback(budget, **QUICK)
    planned = trained(make(), args, callback)
    assert logged(planned) == logged(plain)
    assert "eval_loss" in logged(plain)[-2]
    assert same(planned.model, plain.model)
    check_less_memory(callback, budget)
    assert callback.plan is not None
    assert callback.plan.signature["accumulate"]
    assert callback.plan.optimizer == "AdamW"
    check_as_it_was(planned.model, tmp_path / "saved")


def check_as_it_was(model: Any, folder: Path) -> None:
    assert type(model) in (transformers.GPT2LMHeadModel, transformers.LlamaForCausalLM)
    assert plan_of(model) is None
    ids = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
    assert ids.shape == (1, 5)
    model.save_pretrained(folder)
    assert same(type(model).from_pretrained(folder), model)


@pytest.mark.slow
def test_a_trainer_compiles_within_the_budget(tmp_path: Path) -> None:
    callback = PlannerCallback("1GB", engine="inductor", progress="off")
    rows = [{"input_ids": [5] * LONGEST, "labels": [5] * LONGEST}] * 8
    args = arguments(tmp_path, eval_strategy="no", max_steps=1)
    torch._dynamo.reset()
    with stubs():
        model = trained(gpt2(), args, callback, train_dataset=rows).model
    assert callback.plan is not None
    assert callback.plan.engine == "inductor"
    assert callback.plan.optimizer == "AdamW"
    assert plan_of(model) is None, "the model is given back as it was"


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    said = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    args = arguments(tmp_path, bf16=True, **said)
    plain = trained(gpt2(), args)
    planned = transformers.Trainer(
        gpt2(),
        args,
        data_collator=padded,
        train_dataset=sentences(18),
        callbacks=[PlannerCallback(445_000, **QUICK)],
    )
    planned.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(planned.model, plain.model)
    assert logged(planned)[:-1] == logged(plain)[:-1]  # the last is of the run as a whole


def test_a_lora_trains_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
        return peft.get_peft_model(llama(), config)

    args = arguments(tmp_path, bf16=True, max_steps=1)
    plain = trained(adapted(), args)
    callback = PlannerCallback(158_000, **QUICK)
    planned = trained(adapted(), args, callback)
    assert logged(planned) == logged(plain)
    assert same(planned.model, plain.model)
    check_less_memory(callback, 158_000)
    planned.model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def finetuned(folder: Path, callback: Any = None, **changed: Any) -> Any:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(60)} | {"<pad>": 60, "<eos>": 61, "<unk>": 62}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )

    def rows(count: int, seed: int) -> Any:
        return datasets.Dataset.from_list(
            [{"input_ids": row["input_ids"]} for row in sentences(count, seed)]
        )

    said = {"max_length": LONGEST, "pad_to_multiple_of": 4, "bf16": True, **changed}
    trainer = trl.SFTTrainer(
        llama(),
        arguments(folder, trl.SFTConfig, **said),
        train_dataset=rows(10, 0),
        eval_dataset=rows(6, 1),
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("below", [False, True])
def test_trls_finetuning_is_the_same_in_less_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, below: bool
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    where = "planner.integrations.trainer_callback._scores_some_tokens"
    monkeypatch.setattr(where, lambda model: below)
    plain = finetuned(tmp_path)
    callback = PlannerCallback(365_000, **QUICK)
    planned = finetuned(tmp_path, callback)
    assert logged(planned) == logged(plain)
    assert same(planned.model, plain.model)
    if below:
        assert "outside the planned module" in str(callback.plan)
    else:
        check_less_memory(callback, 365_000)


def test_what_a_plan_cannot_run_in_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the Trainer uses torch_compile"):
        trained(gpt2(), arguments(tmp_path, torch_compile=True), PlannerCallback("1GB"))
    with pytest.raises(BadRequest, match="did you mean 'method'"):
        PlannerCallback("1GB", metod="auto")  # type: ignore[call-arg]
