"""What cannot be traced says what to do instead, where it is called, and only while tracing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from planner.graphs.capture.training_step import capture
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.patches import patching
from planner.graphs.torch_api.refused import refuse_what_cannot_be_traced
from tests.scenes import Apply, mlp


class Rounded(saved_tensors_hooks):
    """Hooks in a class of one's own, as offloading by hand is written."""

    def __init__(self) -> None:
        super().__init__(self.pack, lambda x: x)

    def pack(self, x: Tensor) -> Tensor:
        return x.round()


class Again(torch.autograd.Function):
    """A checkpoint by hand: it runs a function again, and asks for gradients in some way."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], how: str, x: Tensor) -> Tensor:
        ctx.function, ctx.how, ctx.state = function, how, torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            if ctx.how == "seeded":
                torch.set_rng_state(ctx.state)
            y = ctx.function(x)
        if ctx.how == "backward":
            torch.autograd.backward(y, grads)
            return None, None, x.grad
        return None, None, torch.autograd.grad(y, x, grads)[0]


def _by_hand(how: str) -> Callable[..., Tensor]:
    return lambda m, x: Again.apply(lambda t: m.d(t.tanh()), how, m.a(x)).square().mean()


def _seeded(m: Any, x: Tensor) -> Tensor:
    torch.manual_seed(5)
    return m.d(m.a(x)).square().mean()


def _forked(m: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return m.d(m.a(x)).square().mean()


def _halved(m: Any, x: Tensor) -> Tensor:
    with saved_tensors_hooks(Tensor.half, Tensor.float):
        return m.d(m.a(x)).square().mean()


def _rounded(m: Any, x: Tensor) -> Tensor:
    with Rounded():
        return m.d(m.a(x)).square().mean()


def _scanned(m: Any, x: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    added = scan(lambda c, t: (c + t, (c + t).clone()), torch.zeros(16), m.a(x))
    return added[1].square().mean()


def _branched(m: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (m.a(x),)).mean()


def _reentrant(m: Any, x: Tensor) -> Tensor:
    return checkpoint(m.d, m.a(x), use_reentrant=True).square().mean()


def _with_statistics(m: Any, x: Tensor) -> Tensor:
    return checkpoint(m.n, m.a(x), use_reentrant=False).square().mean()


def _assigned(m: Any, x: Tensor) -> Tensor:
    def counted(h: Tensor) -> Tensor:
        m.n.running_mean = m.n.running_mean + h.detach().mean(0)
        return m.d(h).tanh()

    return checkpoint(counted, m.a(x), use_reentrant=False).square().mean()


def _hidden(m: Any, x: Tensor) -> Tensor:
    return (x + 1).requires_grad_().square().mean() + m.a(x).detach().mean()


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "inner backward": (_by_hand("backward"), r"test_refused.py:\d+ .*use torch.autograd.grad"),
    "seeded again": (_by_hand("seeded"), r"test_refused.py:\d+ .*setting the random generator"),
    "seeded": (_seeded, r"test_refused.py:\d+ .*draw before the call"),
    "forked": (_forked, "setting the random generator"),
    "scan": (_scanned, r"test_refused.py:\d+ .*write the loop in Python"),
    "cond": (_branched, r"test_refused.py:\d+ .*torch.where"),
    "packed": (_halved, r"test_refused.py:\d+ .*saved_tensors_hooks.*half.*offload="),
    "packed by a class": (_rounded, r"test_refused.py:\d+ .*saved_tensors_hooks.*Rounded.pack"),
    "reentrant": (_reentrant, r"test_refused.py:\d+ .*use_reentrant=False"),
    "statistics": (_with_statistics, r"test_refused.py:\d+ .*twice in a step.* writes a buffer"),
    "assigned": (_assigned, r"test_refused.py:\d+ .*twice in a step.* writes a buffer"),
    "hidden": (_hidden, "no parameter and no input gets a gradient"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_what_to_do(kind: str) -> None:
    step, words = REFUSED[kind]
    model = Apply(step, a=mlp(), d=nn.Dropout(0.5), n=nn.BatchNorm1d(16))
    with pytest.raises(CaptureError, match=words):
        capture(model, torch.ones(8, 16), optimizer=None)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_stay_or_lie_outside_of_a_checkpoint_are_no_reason(
    momentum: float | None,
) -> None:
    norm = nn.BatchNorm1d(16, momentum=momentum)
    model = Apply(_with_statistics, a=nn.Sequential(mlp(), nn.BatchNorm1d(16)), n=norm.eval())
    assert capture(model, torch.ones(8, 16), optimizer=None).graph.ops
    norm.train()
    with pytest.raises(CaptureError, match="twice in a step"):
        capture(model, torch.ones(8, 16), optimizer=None)


def test_a_checkpoint_by_hand_that_needs_neither_is_captured() -> None:
    model = Apply(_by_hand("grad"), a=mlp(), d=nn.Identity())
    assert capture(model, torch.ones(8, 16), optimizer=None).graph.ops


def test_other_threads_do_as_they_please() -> None:
    done: list[Tensor] = []

    def train() -> None:
        weight = torch.ones(3, requires_grad=True)
        torch.manual_seed(1)
        checkpoint(torch.sin, weight, use_reentrant=True).sum().backward()
        assert weight.grad is not None
        done.append(weight.grad)

    with patching() as patches:
        refuse_what_cannot_be_traced(patches)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert len(done) == 1
