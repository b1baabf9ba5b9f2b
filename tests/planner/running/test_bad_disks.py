"""Five models whose values wait in files: on a slow disk, a busy machine, a disk that fills."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import planner
from benchmarks.models.unets import UNet
from planner.graphs import Action
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.running import copies_to_files
from planner.solvers import Limits
from planner.solvers.minimum_budget import minimum_budget

pytestmark = pytest.mark.slow
Made = tuple[nn.Module, dict[str, Tensor]]
SLOW_SECONDS = 0.004
"""What a disk takes longer for each write and read."""


class Mean(nn.Module):
    """The mean square of what a model returns first."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **given: Tensor) -> Tensor:
        made: Tensor = self.body(**given)[0]
        return made.square().mean()


def ids() -> dict[str, Tensor]:
    tokens = torch.randint(0, 97, (4, 64))
    return {"input_ids": tokens, "labels": tokens}


def gpt2() -> Made:
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=97, n_positions=64, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), ids()


def llama() -> Made:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=88, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), ids()


def vit() -> Made:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return Mean(transformers.ViTModel(config)), {"pixel_values": torch.randn(8, 3, 32, 32)}


def resnet() -> Made:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    return Mean(transformers.ResNetModel(config)), {"pixel_values": torch.randn(4, 3, 32, 32)}


def unet() -> Made:
    labels = torch.randint(0, 4, (4, 32, 32))
    return UNet((8, 16, 32), labels=4), {"pixels": torch.randn(4, 3, 32, 32), "labels": labels}


MODELS: dict[str, Callable[[], Made]] = {
    "gpt2": gpt2, "llama": llama, "vit": vit, "resnet": resnet, "unet": unet
}  # fmt: skip


def build(name: str) -> Made:
    torch.manual_seed(0)
    model, call = MODELS[name]()
    return model.train(), call


def loss_of(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.loss


def trained(model: nn.Module, call: dict[str, Tensor]) -> list[Tensor]:
    """Return loss, gradients, parameters and buffers after a step."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    loss = loss_of(model(**call))
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *grads, *(b.clone() for b in model.buffers())]


@pytest.fixture(scope="module", params=MODELS)
def case(request: Any, tmp_path_factory: Any) -> tuple[str, planner.Plan]:
    """Plan within what makes values move."""
    name = request.param
    model, call = build(name)
    said = {"inputs": call, "optimizer": None, "progress": "off", "limits": Limits(6.0)}
    plain = planner.fit(model, "1GB", **said)
    least = minimum_budget(plain.graph, Limits(6.0)).least_bytes
    budget = int(least + 0.25 * (plain.plain_peak_bytes - least))
    where = {"directory": str(tmp_path_factory.mktemp(name)), "bytes_per_second": 8e9}
    plan = planner.fit(model, budget, offload=where, **said)
    assert plan.schedule.moves
    return name, plan


@pytest.fixture
def load() -> Iterator[None]:
    """Keep every core busy."""
    burn = [sys.executable, "-c", "while True: pass"]
    burning = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    yield
    for process in burning:
        process.kill()
        process.wait()


def test_a_slow_disk_on_a_busy_machine_changes_no_bit_and_holds_no_more(
    case: tuple[str, planner.Plan], load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, plan = case
    (plain, call), (model, _) = build(name), build(name)
    planned = plan.apply(model)
    expected = [trained(plain, call) for _ in range(2)]  # running statistics go on

    def slow(own: Callable[..., int]) -> Callable[..., int]:
        def called(*args: Any) -> int:
            time.sleep(SLOW_SECONDS)
            return own(*args)

        return called

    for name_of_call in ("pwrite", "preadv"):
        own = getattr(os, name_of_call)
        monkeypatch.setattr(copies_to_files.os, name_of_call, slow(own))
    for made in expected:
        assert all(map(torch.equal, trained(planned, call), made))
    planned.zero_grad(set_to_none=True)
    held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)

    def step() -> None:
        out = planned(**call)
        loss_of(out).backward()

    assert measure_peak(step).peak_bytes + held <= plan.budget_bytes


@pytest.mark.parametrize(("call", "code"), [("pwrite", errno.ENOSPC), ("preadv", errno.EIO)])
def test_a_disk_that_fails_midway_ends_the_step_and_corrupts_nothing(
    case: tuple[str, planner.Plan], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    name, plan = case
    moves = sum(s.action is Action.OFFLOAD for s in plan.schedule.steps)
    (plain, given), (model, _) = build(name), build(name)
    planned = plan.apply(model)
    own = getattr(os, call)
    for fails in sorted({1, (moves + 1) // 2, moves}):
        before = [t.clone() for t in (*planned.parameters(), *plain.parameters())]
        calls: list[int] = []

        def failing(*args: Any, fails: int = fails, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) >= fails:
                raise OSError(code, os.strerror(code))
            done: int = own(*args)
            return done

        with monkeypatch.context() as patched:
            patched.setattr(copies_to_files.os, call, failing)
            with pytest.raises(planner.HostMemoryError, match=os.strerror(code)):
                trained(planned, given)
        assert len(calls) >= fails
        after = (*planned.parameters(), *plain.parameters())
        assert all(map(torch.equal, before, after))
    fresh, _ = build(name)
    planned.load_state_dict(fresh.state_dict())  # running statistics as before the failed steps
    assert all(map(torch.equal, trained(planned, given), trained(plain, given)))


def test_a_disk_that_is_full_fails_before_anything_runs(
    case: tuple[str, planner.Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, plan = case
    assert plan.host is not None
    plan = replace(plan, host=replace(plan.host, directory=str(tmp_path)))  # with no file so far

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model, call = build(name)
    with monkeypatch.context() as patched:
        patched.setattr(copies_to_files.os, "posix_fallocate", full)
        with pytest.raises(planner.HostMemoryError, match="No space left"):
            plan.apply(model)(**call)
    plain, _ = build(name)
    assert all(map(torch.equal, trained(plan.apply(model), call), trained(plain, call)))
