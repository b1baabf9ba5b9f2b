"""How long do steps take beside their estimates, eager mode and what people do today?"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import planner
from benchmarks.compiled import checkpointed
from benchmarks.gpu.models import (
    AUTOCAST,
    LARGE,
    MODELS,
    gpt2,
    on,
    peak_of,
    seconds_of,
    stepper,
)
from benchmarks.gpu.plans import held, outside_bytes, reserved
from benchmarks.gpu.rows import Row, row
from planner.graphs.capture.training_step import capture
from planner.solvers import Limits


def speed(kind: str) -> Iterator[Row]:
    """Compare the time of a planned step with the estimate and with eager mode."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        eager = seconds_of(kind, stepper(model, inputs))
        plan = planner.fit(model, "90%", inputs=inputs, progress="off")
        step = seconds_of(kind, stepper(plan.apply(model), inputs))
        within = 0.5 < step / plan.seconds < 2 or kind == "cpu"
        yield row("speed", f"{name}, estimate", "seconds", step, plan.seconds, "2x", within)
        yield row("speed", f"{name}, eager", "seconds", step, eager, "1.25x", step < 1.25 * eager)


def rivals(kind: str) -> Iterator[Row]:
    """Compare a plan with per-block checkpointing at the memory that checkpointing takes."""
    build = lambda: gpt2(0.0, 8)  # noqa: E731
    model, inputs = on(kind, build)
    with checkpointed(model):
        step = stepper(model, inputs)
        step()
        peak, seconds = peak_of(kind, model, inputs, step), seconds_of(kind, step)
    plan = planner.fit(model, "90%", inputs=inputs, progress="off")
    budget = int(1.01 * peak) + outside_bytes(plan)
    plan = planner.fit(model, budget, inputs=inputs, progress="off")
    step = stepper(plan.apply(model), inputs)
    step()
    ours, took = peak_of(kind, model, inputs, step), seconds_of(kind, step)
    yield row("rivals", "checkpointed blocks", "bytes", ours, peak, "+2%", ours < 1.02 * peak)
    ok = took < 1.05 * seconds
    yield row("rivals", "checkpointed blocks", "seconds", took, seconds, "1.05x", ok)


@dataclass(frozen=True)
class _Runs:
    """Steps of a model on a card; forward alone is run in ``forward``."""

    kind: str
    model: nn.Module
    inputs: dict[str, Tensor]
    forward: AbstractContextManager[Any]

    def planned(self, budget: str | int) -> planner.Plan:
        """Plan within a budget, or the least that works."""
        said: dict[str, Any] = {"inputs": self.inputs, "progress": "off"}
        said["limits"] = Limits(seconds=20)
        with self.forward:
            try:
                found: planner.Plan = planner.fit(self.model, budget, **said)
            except planner.InfeasibleBudget as error:
                found = planner.fit(self.model, error.least_bytes, **said)
        return found

    def measured(self, runs: nn.Module) -> tuple[int, int, float]:
        """Return the most bytes held, those reserved, and the seconds of a step."""
        step = stepper(runs, self.inputs, forward=self.forward)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        taken = torch.cuda.max_memory_reserved()
        most = peak_of(self.kind, self.model, self.inputs, step)
        return most, taken, seconds_of(self.kind, step)


def large(kind: str, name: str) -> Iterator[Row]:
    """Compare a model of a size that people train with what was predicted of it."""
    model, inputs = on(kind, LARGE[name])
    forward = torch.autocast(kind, torch.bfloat16) if AUTOCAST in name else nullcontext()
    runs = _Runs(kind, model, inputs, forward)
    plain = runs.planned("95%")
    with forward:
        eager = capture(model, inputs).eager_peak_bytes
    assert eager is not None, "it was asked for"
    peak, _, seconds = runs.measured(model)
    expected = eager - outside_bytes(plain)
    ok = abs(peak / expected - 1) < 0.03
    yield row("large", f"{name}, eager", "bytes", peak, expected, "3%", ok)
    ok = 0.5 < seconds / plain.plain_seconds < 2
    yield row("large", f"{name}, eager", "seconds", seconds, plain.plain_seconds, "2x", ok)
    with checkpointed(model):
        least, _, slow = runs.measured(model)
    yield row("large", f"{name}, checkpointed", "bytes", least, peak, "", ok=True)
    yield row("large", f"{name}, checkpointed", "times eager", slow / seconds, "", "", ok=True)
    resident = plain.graph.resident_bytes
    moving = plain.plain_peak_bytes - resident
    budgets = {f"{x:.0%}": resident + int(x * moving) for x in (1.0, 0.6, 0.4)}
    budgets["as checkpointed"] = int(1.01 * least) + outside_bytes(plain)
    for within, budget in budgets.items():
        plan = runs.planned(budget)
        yield from _kept(runs, plan, f"{name}, {within}, +{plan.overhead:.1%}", seconds)


def _kept(runs: _Runs, plan: planner.Plan, case: str, seconds: float) -> Iterator[Row]:
    """Compare a planned step with its plan, and with the seconds of an eager one."""
    most, taken, took = runs.measured(plan.apply(runs.model))
    yield held("large", case, most, plan)
    yield from reserved("large", case, taken, plan)
    ratio, estimate = took / seconds, plan.seconds / plan.plain_seconds
    yield row("large", case, "times eager", ratio, estimate, "+0.1", ratio < estimate + 0.1)
