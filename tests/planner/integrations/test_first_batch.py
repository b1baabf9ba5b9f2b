"""A model that is planned in place at its first batch: accelerate, and loops of one's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner import BadBudget, BadRequest, InfeasibleBudget
from planner.integrations import plan_at_first_batch, plan_of, without_plan
from tests.by_default import slow_but
from tests.planner.integrations.trainers import QUICK, gpt2, padded, same, sentences

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Attention(nn.Module):
    """Causal attention as nanoGPT and minGPT write it, with a mask in a buffer."""

    bias: Tensor

    def __init__(self, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(block, block)).view(1, 1, block, block))
        self.heads, self.width = heads, width

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.width, dim=2)
        q, k, v = (a.view(b, t, self.heads, c // self.heads).transpose(1, 2) for a in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, block)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A model in the manner of nanoGPT: tied weights, and ``(logits, loss)``."""

    def __init__(self, words: int = 64, width: int = 32, block: int = 16) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(block, width)
        self.h = nn.ModuleList(Block(width, 2, block) for _ in range(1))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.wte.weight = self.lm_head.weight
        self.block = block

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert idx.size(1) <= self.block
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for block in self.h:
            x = block(x)
        if targets is None:
            return self.lm_head(self.ln_f(x)[:, [-1], :]), None
        logits = self.lm_head(self.ln_f(x))
        flat = logits.view(-1, logits.size(-1))
        return logits, F.cross_entropy(flat, targets.view(-1), ignore_index=-1)


def test_a_loop_in_the_manner_of_nanogpt_is_the_same() -> None:
    def train(budget: int | None) -> tuple[nn.Module, list[Tensor]]:
        torch.manual_seed(0)
        model = GPT()
        if budget:
            plan_at_first_batch(model, budget, accumulate=True, **QUICK)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for step in range(6):
            torch.manual_seed(step)
            idx = torch.randint(64, (8 if step < 5 else 3, 16))
            with torch.autocast("cpu", torch.bfloat16):
                _, loss = model(idx, idx.roll(-1, 1))
            (loss / 2).backward()
            losses.append(loss.detach())
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if step == 3:
                model.eval()
                with torch.no_grad():
                    losses.append(model(idx)[0].sum())
                model.train()
        return model, losses

    plain, expected = train(None)
    planned, found = train(520_000)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert same(planned, plain)
    plan = plan_of(planned)
    assert plan is not None
    assert plan.peak_bytes <= 520_000 < plan.plain_peak_bytes


@pytest.mark.parametrize("prepared_first", slow_but({True}, [False, True]))
def test_accelerate_trains_the_same(prepared_first: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    state = accelerate.state

    def train(budget: int | None) -> tuple[Any, list[Tensor]]:
        for kind in (state.AcceleratorState, state.GradientState, state.PartialState):
            kind._reset_state()
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2
        )
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if budget and not prepared_first:
            plan_at_first_batch(model, budget, accumulate=True, **QUICK)
        data = torch.utils.data.DataLoader(sentences(6), batch_size=4, collate_fn=padded)
        model, optimizer, data = accelerator.prepare(model, optimizer, data)
        if budget and prepared_first:
            plan_at_first_batch(model, budget, accumulate=True, **QUICK)
        losses = []
        for batch in data:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            losses.append(model(**batch).loss)
        return model, losses

    plain, expected = train(None)
    planned, found = train(430_000)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert same(planned, plain)
    plan = plan_of(planned)
    assert plan is not None
    assert plan.peak_bytes <= 430_000 < plan.plain_peak_bytes


def test_without_it_the_model_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    own = model.forward = lambda x: nn.Sequential.forward(model, x) * 2  # type: ignore[method-assign]
    plan_at_first_batch(model, "1MB", progress="off")
    assert "forward" not in vars(model)
    x = torch.randn(4, 8)
    y = model(x)
    assert torch.equal(y, own(x))
    assert plan_of(copy.deepcopy(model)) is plan_of(model) is not None
    assert without_plan(model) is model
    assert type(model) is nn.Sequential
    assert vars(model)["forward"] is own
    assert plan_of(model) is None


def test_nothing_is_planned_before_it_trains() -> None:
    model = plan_at_first_batch(nn.Linear(8, 8), "1MB", progress="off")
    with torch.no_grad():
        model(torch.randn(2, 8))
    model.eval()(torch.randn(2, 8))
    assert plan_of(model) is None
    model.train()(torch.randn(2, 8)).sum().backward()
    assert plan_of(model) is not None


def test_the_largest_batch_is_planned() -> None:
    model = plan_at_first_batch(nn.Linear(8, 8), "1MB", largest_batch=16, progress="off")
    model(torch.randn(2, 8))
    plan = plan_of(model)
    assert plan is not None
    assert plan.signature["inputs"] == ["float32[16, 8]"]


def test_a_plan_for_the_largest_says_so_where_it_does_not_fit() -> None:
    model = plan_at_first_batch(nn.Linear(8, 8), "2KB", largest_batch=64, progress="off")
    with pytest.raises(InfeasibleBudget) as caught:
        model(torch.randn(2, 8))
    (note,) = caught.value.__notes__
    assert "the largest batch, float32[64, 8]; the first one is float32[2, 8]" in note


def test_what_cannot_be_is_said_at_once() -> None:
    with pytest.raises(BadBudget):
        plan_at_first_batch(nn.Linear(2, 2), "lots")
    with pytest.raises(BadRequest, match="'loss' cannot be said here"):
        plan_at_first_batch(nn.Linear(2, 2), "1GB", loss=F.mse_loss)  # type: ignore[call-arg]
    with pytest.raises(BadRequest, match="DataParallel"):
        plan_at_first_batch(nn.DataParallel(nn.Linear(2, 2)), "1GB")
