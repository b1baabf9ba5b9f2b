"""Small models and data of uneven lengths, and runs that are compared with plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

WORDS = 64
LONGEST = 12
QUICK: Any = {"largest_length": LONGEST, "method": "chen_sqrt", "progress": "off"}
"""Any plan for the longest sentences will do."""
_TIMES = ("runtime", "_per_second", "model_preparation_time")


def gpt2(**changed: Any) -> nn.Module:
    """Return a small GPT-2, dropout included, the same each time."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
        **changed,
    )
    return transformers.GPT2LMHeadModel(config).train()


def llama() -> nn.Module:
    """Return a small Llama, the same each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=60,
        eos_token_id=61,
    )
    return transformers.LlamaForCausalLM(config).train()


def sentences(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Return rows of token ids, most of 6 to 8 tokens and some of 10 to 12."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        low = 10 if index % 5 == 4 else 6
        length = int(torch.randint(low, low + 3, (), generator=generator))
        ids = torch.randint(3, 50, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def padded(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    """Collate rows, padded to the longest, up to a multiple of four."""
    longest = max(len(row["input_ids"]) for row in rows)
    width = -(-longest // 4) * 4

    def column(name: str, fill: int) -> Tensor:
        return torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in rows])

    ids = column("input_ids", -1)
    return {
        "input_ids": ids.clamp(min=0),
        "attention_mask": (ids >= 0).long(),
        "labels": column("labels", -100),
    }


def arguments(folder: Path, cls: Any = None, **changed: Any) -> Any:
    """Return training arguments: accumulation, evaluation, a smaller last batch."""
    said = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **changed,
    }
    return (cls or transformers.TrainingArguments)(str(folder), **said)


def logged(trainer: Any) -> list[dict[str, float]]:
    """Return all that a Trainer logged, but for times."""
    return [
        {k: v for k, v in row.items() if not any(t in k for t in _TIMES)}
        for row in trainer.state.log_history
    ]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same bits."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
