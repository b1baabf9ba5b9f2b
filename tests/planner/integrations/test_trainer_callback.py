"""transformers' Trainer, TRL's SFTTrainer and PEFT: within a budget, and the same bits as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planner import BadRequest, InfeasibleBudget
from planner.integrations import PlannerCallback, plan_of
from tests.planner.integrations.trainers import (
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


def test_trainer_in_bfloat16_is_the_same_within_less_memory(tmp_path: Path) -> None:
    args = arguments(tmp_path, bf16=True)
    plain = trained(gpt2(), args)
    callback = PlannerCallback("850KB", progress="off")
    planned = trained(gpt2(), args, callback)
    assert logged(planned) == logged(plain)
    assert same(planned.model, plain.model)
    assert callback.plan is not None
    assert callback.plan.peak_bytes <= 850_000 < callback.plan.plain_peak_bytes
    assert callback.plan.signature["accumulate"]
    assert callback.plan.optimizer == "AdamW"
