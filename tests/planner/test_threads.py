"""Several threads at once: they plan the same as one after another, and leave the others alone."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.plans import Plan


class Recurrent(nn.Module):
    """A GRU with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(8, 16, num_layers=2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)[0]
        return made


def dropout() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Dropout(0.1)) for _ in range(4)]
    return nn.Sequential(*layers)


def batch_norm() -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers)


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


@dataclass(frozen=True)
class Step:
    """A model, the shape of its input, and a budget that makes it compute a few ops again."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    budget_bytes: int


STEPS = {
    "dropout": Step(dropout, (256, 32), 360_000),
    "batch norm": Step(batch_norm, (8, 4, 16, 16), 275_000),
    "gru": Step(Recurrent, (16, 4, 8), 96_566),
    "attention": Step(attention, (8, 16, 16), 200_000),
}


def plan(name: str, model: nn.Module | None = None) -> Plan:
    step = STEPS[name]
    inputs = torch.ones(step.shape)
    return planner.fit(model or step.make(), step.budget_bytes, inputs=inputs, loss=square)


def square(out: Tensor) -> Tensor:
    return out.square().mean()


def at_once(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run functions in a thread each, all begun together."""
    ready = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        ready.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


def assert_same(one: Plan, other: Plan) -> None:
    assert one.graph == other.graph
    assert one.schedule == other.schedule
    assert one.signature == other.signature
    assert one.recomputed


@pytest.mark.parametrize(
    "names", [("dropout", "gru"), pytest.param(tuple(STEPS), marks=pytest.mark.slow)]
)
def test_plans_made_at_once_are_those_made_in_turn(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "at once"))  # nothing measured yet
    found = at_once([partial(plan, name) for name in names])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "in turn"))
    for name, made in zip(names, found, strict=True):
        assert_same(made, plan(name))


def test_one_model_is_planned_by_two_threads() -> None:
    model = STEPS["gru"].make()
    alone = plan("gru", model)
    for made in at_once([partial(plan, "gru", model)] * 2):
        assert_same(made, alone)


def test_plans_are_applied_and_run_at_once() -> None:
    models = [batch_norm(), nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))]
    inputs = [torch.randn(8, 4, 16, 16), torch.randn(64, 32)]

    def planned(model: nn.Module, x: Tensor) -> list[Tensor]:
        made = planner.fit(model, "1GB", inputs=x, loss=square)
        made.apply(model)(x).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = [copy.deepcopy(model) for model in models]
    found = at_once([partial(planned, m, x) for m, x in zip(models, inputs, strict=True)])
    for model, x, gradients in zip(plain, inputs, found, strict=True):
        square(model(x)).backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)


@contextmanager
def planning(models: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Plan in another thread, over and over, while the block runs; yield what has been planned."""
    stop, begun, planned = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        while not stop.is_set():
            for name, model in models.items():
                plan(name, model)
                planned.append(name)
                begun.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        begun.wait(60)
        try:
            yield planned
        finally:
            stop.set()
        done.result()


def trained(goes_on: Callable[[int], bool]) -> tuple[list[float], list[str], list[str]]:
    """Train a model with dropout, hooks and a warning; return losses, calls and warnings.

    Another step is made as long as ``goes_on`` says so of their number.
    """
    torch.manual_seed(1)
    model, called = dropout(), list[str]()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(f"into {name}"))
        module.register_forward_hook(lambda *_, name=name: called.append(f"out of {name}"))
    optimizer = torch.optim.AdamW(model.parameters())
    losses = list[float]()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        while goes_on(len(losses)):
            loss = square(model(torch.randn(8, 32)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            warnings.warn("one step more", stacklevel=1)
    return losses, called, [str(w.message) for w in seen]


def test_a_thread_that_trains_is_left_alone_by_one_that_plans() -> None:
    torch.manual_seed(1)  # a thread that seeds anew just when a capture begins is not told apart
    models = {name: STEPS[name].make() for name in ("batch norm", "dropout", "attention")}
    for name, model in models.items():
        plan(name, model)  # what draws is measured now: that puts the generator back
    with planning(models) as planned:
        enough = len(planned) + 2  # so that at least one was planned from beginning to end
        beside = trained(lambda steps: steps < 20 or len(planned) < enough)
    alone = trained(lambda steps: steps < len(beside[0]))
    for found, expected in zip(beside, alone, strict=True):
        assert found == expected
