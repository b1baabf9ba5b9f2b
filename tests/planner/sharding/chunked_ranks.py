"""Two ranks that train small language models, their loss in chunks and whole, and report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from planner.plan.configuration import Configuration
from planner.plans import ShardedPlan
from planner.sharding.apply_sharded import apply, wrap
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.verification.ranks import RankMeasurement, ShardedTrial, measure_rank
from tests.planner.sharding.ranks import named, plan_of, refused

WORDS, LENGTH = 3001, 64
SIZES: dict[str, Any] = {"vocab_size": WORDS, "use_cache": False}


def gpt() -> nn.Module:
    """GPT-2, whose head is tied to its embedding."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
        loss_type="ForCausalLMLoss", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SIZES,
    )  # fmt: skip
    made: nn.Module = transformers.GPT2LMHeadModel(config).train()
    return made


def llama() -> nn.Module:
    """Llama, whose head has a weight of its own."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, **SIZES,
    )  # fmt: skip
    made: nn.Module = transformers.LlamaForCausalLM(config).train()
    return made


class Words(nn.Module):
    """Returns logits: its loss is the caller's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = lambda: nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))  # noqa: E731
        self.embed = nn.Embedding(WORDS, 32)
        self.blocks = nn.ModuleList([block(), block()])
        self.head = nn.Linear(32, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def batch(rows: int, rank: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1 + rank))
    labels = ids.clone()
    labels[:, :5] = -100
    return {"input_ids": ids, "labels": labels}


def captured(
    make: Callable[[], nn.Module], configuration: Configuration, rewrite: str
) -> ModelCapture:
    return capture_units(
        make(),
        batch(configuration.micro_batch),
        device="cpu",
        precision=configuration.computes_in,
        rewrite=rewrite,
    )


def trial(make: Callable[[], nn.Module], plan: ShardedPlan, *, planned: bool) -> ShardedTrial:
    """Return what ranks run: a plan, or what torch does with the same units."""
    c = plan.configuration
    made = functools.partial(_of_rank, make, c.micro_batch * c.accumulation)
    return ShardedTrial(made, c, plan.units, plan if planned else None, steps=0)


def _of_rank(
    make: Callable[[], nn.Module], rows: int, rank: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    return make(), batch(rows, rank)


def measured(rank: int, folder: Path, trials: dict[str, ShardedTrial]) -> dict[str, Any]:
    """Measure trials on a rank."""
    found: dict[str, RankMeasurement] = {n: measure_rank(t, rank) for n, t in trials.items()}
    return dict(found)


def own_loss(rank: int, folder: Path, plan: ShardedPlan) -> dict[str, Any]:
    """Train a step with the caller's loss, plain and planned; say what is refused."""
    given = batch(2, rank)
    plain, planned = wrap(Words(), plan.configuration, plan.units), apply(plan, Words())
    losses = [
        loss_of(plain(given["input_ids"]), given["labels"]),
        planned(given["input_ids"], targets=given["labels"]),
    ]
    found: dict[str, Any] = {"losses": losses, "gradients": []}
    for model, loss in zip((plain, planned), losses, strict=True):
        loss.backward()
        found["gradients"].append(named({n: p.grad for n, p in model.named_parameters()}))
    found["losses"] = [loss.item() for loss in losses]
    with torch.no_grad():
        found["evaluated"] = planned(batch(5)["input_ids"]).shape
    found["smaller"] = refused(lambda: planned(given["input_ids"][:1], targets=given["labels"][:1]))
    whole = plan_of(capture_units(Words(), given["input_ids"], loss=torch.sum, device="cpu"),
                    plan.configuration, (False,) * 4)  # fmt: skip
    found["no loss"] = refused(lambda: apply(whole, Words(), loss=loss_of))
    return found


def late(rank: int, folder: Path, plan: ShardedPlan) -> dict[str, Any]:
    """Read logits that are computed when they are read, in time and too late."""
    plain, planned = wrap(gpt(), plan.configuration, plan.units), apply(plan, gpt())
    wanted, output = plain(**batch(2, rank)), planned(**batch(2, rank))
    untouched = not output.logits.is_computed
    same = torch.equal(output.logits, wanted.logits)
    again = planned(**batch(2, rank))
    again.loss.backward()
    after_backward = refused(again.logits.sum)
    planned(**batch(2, rank)).loss.backward()
    after_call = refused(again.logits.sum)
    return {
        "same": untouched and same,
        "after backward": after_backward,
        "after another call": after_call,
    }
