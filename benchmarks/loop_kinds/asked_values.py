"""Loops whose model asks for values, checks them, or holds tensors of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from benchmarks.loop_kinds.loop import Net, Setup, batch, loop, trained

ASKED = "asks for a value"
CHECKED = "checks a value"
CONSTANT = "holds tensors of its own"
TABLE = torch.linspace(0.5, 1.5, 10)
log = logging.getLogger(__name__)


def checked(check: Callable[[Tensor], object]) -> Setup:
    """Return a loop whose model checks its output.

    Args:
        check: called with the output.
    """

    class Model(Net):
        def body(self, x: Tensor) -> Tensor:
            out = super().body(x)
            check(out)
            return out

    return trained(Model())


@loop(CHECKED)
def check_that_raises() -> Setup:
    def check(out: Tensor) -> None:
        if torch.isnan(out).any():
            raise ValueError("not a number")

    return checked(check)


@loop(CHECKED)
def check_by_assert() -> Setup:
    def check(out: Tensor) -> None:
        assert torch.isfinite(out).all()
        assert not (out.abs() > 1e6).any(), "it diverged"

    return checked(check)


@loop(CHECKED)
def check_that_logs() -> Setup:
    def check(out: Tensor) -> None:
        if not out.isfinite().all():
            log.warning("it diverged")

    return checked(check)


@loop(CHECKED)
def check_of_the_inputs() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert (x.abs() < 100).all()
            return super().forward(x)

    return trained(Model())


@loop(CHECKED)
def value_that_is_kept() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.history: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            loss = super().forward(x)
            self.last = loss.item()
            self.history.append(round(loss.detach().item(), 3))
            return loss

    model = Model()

    def step(called: nn.Module, k: int) -> Tensor:
        loss: Tensor = called(batch(k))
        return loss * model.last + model.history.pop()

    return Setup(model, step)


@loop(CHECKED)
def value_that_is_logged() -> Setup:
    def check(out: Tensor) -> None:
        log.info("mean %s, largest %.3f", out.mean().item(), 0.5)
        log.info(f"mean {out.mean():.3f}, least {out.min().item():.3f}")

    return checked(check)


@loop(CHECKED, refused="may be kept or logged")
def value_that_is_computed_with() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            loss = super().forward(x)
            return loss / loss.item()

    return trained(Model())


@loop(CHECKED, refused="needs the value of a tensor")
def branch_on_an_activation() -> Setup:
    class Model(Net):
        def body(self, x: Tensor) -> Tensor:
            out = super().body(x)
            return out if out.mean() > 0 else 2 * out

    return trained(Model())


@loop(CHECKED)
def distributions_of_outputs() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            mean, scale = self.body(x).chunk(2, dim=-1)
            posterior = Normal(mean, scale.exp())
            return kl_divergence(posterior, Normal(0.0, 1.0)).mean() - posterior.rsample().mean()

    return trained(Model())


@loop(CHECKED)
def policy_gradient() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            policy = Categorical(logits=self.body(x))
            drawn: Tensor = policy.log_prob(policy.sample())  # type: ignore[no-untyped-call]
            loss: Tensor = -drawn.mean() - policy.entropy().mean()  # type: ignore[no-untyped-call]
            return loss

    return trained(Model())


@loop(ASKED)
def branch_on_a_buffer() -> Setup:
    class Model(Net):
        active: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("active", torch.tensor([True, False]))

        def body(self, x: Tensor) -> Tensor:
            return super().body(x) if self.active.any() else x

    return trained(Model())


@loop(ASKED)
def branch_on_the_inputs() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 16)

        def forward(self, ids: Tensor) -> Tensor:
            masked = ids == 3
            ids = ids.clone()
            ids[masked] = 0
            x = self.words(ids)
            if (ids == 0).any():
                x = 2 * x
            return super().forward(x)

    ids = torch.randint(0, 10, (4, 8), generator=torch.Generator().manual_seed(1))
    ids[0, 0] = 3
    return Setup(Model(), lambda called, k: called(ids), {"inputs": ids})


@loop(ASKED, refused="that it changes in every call")
def flag_in_a_buffer_that_flips() -> Setup:
    class Model(Net):
        ready: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

        def forward(self, x: Tensor) -> Tensor:
            if not self.ready:
                self.ready.logical_not_()
                return 2 * super().forward(x)
            return super().forward(x)

    return trained(Model())


@loop(CONSTANT)
def table_of_the_file() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * TABLE[3]

    return trained(Model())


@loop(CONSTANT)
def teacher_in_the_loss() -> Setup:
    teacher = Net().eval()
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def distilled(out: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher.body(out)
        return (out - wanted).square().mean()

    def step(called: nn.Module, k: int) -> Tensor:
        out: Tensor = called(batch(k))
        return distilled(out) if called is model else out

    return Setup(model, step, {"loss": distilled})


@loop(CONSTANT)
def teacher_that_follows() -> Setup:
    """An average of the student's weights, updated in place between steps."""
    teacher = nn.Linear(16, 16).requires_grad_(requires_grad=False)
    model = nn.Linear(16, 16)

    def distilled(out: Tensor) -> Tensor:
        off: Tensor = out - teacher(out.detach())
        return off.square().mean()

    def step(called: nn.Module, k: int) -> Tensor:
        with torch.no_grad():
            teacher.weight.lerp_(model.weight, 0.1)
        out: Tensor = called(batch(k))
        return distilled(out) if called is model else out

    return Setup(model, step, {"loss": distilled})


@loop(CONSTANT, refused="requires a gradient")
def head_outside_the_model() -> Setup:
    head = nn.Linear(16, 4)

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = head(self.body(x)).square().mean()
            return out

    return trained(Model())


@loop(CONSTANT, refused="pass it as an input, or for a loss callable as targets=")
def targets_in_a_closure() -> Setup:
    targets = batch(100)
    model = nn.Linear(16, 16)

    def loss(out: Tensor) -> Tensor:
        return (out - targets).square().mean()

    def step(called: nn.Module, k: int) -> Tensor:
        nonlocal targets
        targets = batch(100 + k)
        out: Tensor = called(batch(k))
        return loss(out) if called is model else out

    return Setup(model, step, {"loss": loss})


@loop(ASKED)
def numbers_and_types_as_arguments() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor, scale: Any = 1, kind: Any = None) -> Tensor:
            loss: Tensor = super().forward(x).to(kind) * scale
            return loss

    options = {"scale": np.float32(2.0), "kind": torch.float64}
    fit = {"inputs": {"x": batch(), **options}}
    return Setup(Model(), lambda called, k: called(batch(k), **options), fit)


@loop(ASKED)
def gaps_in_some_batches() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor, mask: Any = None) -> Tensor:
            if not mask.all():
                x = x * mask[:, None]
            return super().forward(x)

    def step(called: nn.Module, k: int) -> Tensor:
        loss: Tensor = called(batch(k), torch.arange(32) < 32 - k % 2)
        return loss

    return Setup(Model(), step, {"inputs": (batch(), torch.ones(32, dtype=torch.bool))})


@loop(ASKED)
def lengths_of_sequences() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor, words: Any = None, lengths: Any = None) -> Tensor:
            scores = self.body(x).reshape(8, 4, 16).log_softmax(-1)
            return nn.functional.ctc_loss(scores, words, torch.full((4,), 8), lengths)

    words = torch.randint(1, 16, (4, 5), generator=torch.Generator().manual_seed(1))

    def step(called: nn.Module, k: int) -> Tensor:
        loss: Tensor = called(batch(k), words, (torch.arange(4) + k) % 3 + 1)
        return loss

    return Setup(Model(), step, {"inputs": (batch(), words, torch.tensor([1, 5, 2, 3]))})


@loop(ASKED, refused="packed sequence")
def packed_sequences() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(16, 16)

        def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(
                x.reshape(8, 4, 16), lengths, enforce_sorted=False
            )
            return super().forward(self.cell(packed)[1])

    def step(called: nn.Module, k: int) -> Tensor:
        loss: Tensor = called(batch(k), (torch.arange(4) + k) % 3 + 1)
        return loss

    return Setup(Model(), step, {"inputs": (batch(), torch.tensor([8, 5, 2, 3]))})
