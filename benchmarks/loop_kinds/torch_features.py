"""Loops over models that use what torch itself offers to save memory, quantize or branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.loop_kinds.loop import Net, Setup, batch, loop, trained

FEATURE = "uses a feature of torch"
SIZES = "calls with other sizes"


def checkpointed(*, reentrant: bool) -> Setup:
    """Return a loop over a model that checkpoints itself.

    Args:
        reentrant: in which of torch's two ways.
    """

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.down, self.up(x).relu(), use_reentrant=reentrant)
            return out.square().mean()

    return trained(Model())


@loop(FEATURE)
def checkpoint_of_today() -> Setup:
    return checkpointed(reentrant=False)


@loop(FEATURE, refused="pass use_reentrant=False")
def checkpoint_that_is_reentrant() -> Setup:
    return checkpointed(reentrant=True)


class Remade(torch.autograd.Function):
    """Computes its activation again in the backward pass, by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return the activation and keep what it is made of."""
        ctx.save_for_backward(x, weight)
        with torch.no_grad():
            return torch.relu(x @ weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Compute the activation again, then its gradients."""
        own = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            again = torch.relu(own[0] @ own[1])
        return torch.autograd.grad(again, own, grads[0])


@loop(FEATURE)
def checkpoint_by_hand() -> Setup:
    class Model(Net):
        def body(self, x: Tensor) -> Tensor:
            hidden: Tensor = Remade.apply(x, self.up.weight.t())  # type: ignore[no-untyped-call]
            out: Tensor = self.down(hidden)
            return out

    return trained(Model())


@loop(FEATURE, refused=r"torch.cond is no operator")
def branch_by_cond() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v * 3, (x,))
            return super().forward(out)

    return trained(Model())


@loop(FEATURE)
def hook_on_a_parameter() -> Setup:
    model = Net()
    model.up.weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))  # type: ignore[no-untyped-call]
    return trained(model)


@loop(FEATURE)
def frozen_layer() -> Setup:
    model = Net()
    model.up.requires_grad_(requires_grad=False)
    return trained(model)


def sized(rows: tuple[int, ...], **fit: Any) -> Setup:
    """Return a loop whose batches have these many rows in turn.

    Args:
        rows: of each step; the plan is made for 32.
        fit: what else ``fit`` is told.
    """
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 16))

    def step(called: nn.Module, k: int) -> Tensor:
        loss: Tensor = called(batch(k, rows[k])).square().mean()
        return loss

    return Setup(model, step, fit)


@loop(SIZES)
def smaller_last_batch() -> Setup:
    return sized((32, 32, 32, 9))


@loop(SIZES)
def another_batch_each_time() -> Setup:
    return sized((31, 5, 32, 17))


@loop(SIZES, refused="the plan serves up to 32")
def larger_batch() -> Setup:
    return sized((32, 33, 32, 32))


@loop(SIZES)
def another_length_each_time() -> Setup:
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def step(called: nn.Module, k: int) -> Tensor:
        x = torch.randn(4 - k // 2, 9 - 2 * k, 16, generator=torch.Generator().manual_seed(k))
        loss: Tensor = called(x).square().mean()
        return loss

    inputs = {"inputs": torch.zeros(4, 9, 16), "dynamic": {"input": (0, 1)}}
    return Setup(model, step, inputs)
