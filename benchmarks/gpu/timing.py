"""How long do steps take beside their estimates, eager mode and what people do today?"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

import planner
from benchmarks.compiled import checkpointed
from benchmarks.gpu.models import (
    AUTOCAST,
    LARGE,
    MODELS,
    allocated_bytes,
    gpt2,
    on,
    outside_bytes,
    peak_of,
    seconds_of,
    stepper,
)
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


def large(kind: str, name: str) -> Iterator[Row]:
    """Compare a model of a size that people train with what was predicted of it."""
    model, inputs = on(kind, LARGE[name])
    forward = torch.autocast(kind, torch.bfloat16) if AUTOCAST in name else nullcontext()
    said: dict[str, Any] = {"inputs": inputs, "progress": "off", "limits": Limits(seconds=20)}

    def measured(runs: nn.Module) -> tuple[int, int, float]:
        step = stepper(runs, inputs, forward=forward)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        reserved = torch.cuda.max_memory_reserved()
        return peak_of(kind, model, inputs, step), reserved, seconds_of(kind, step)

    with forward:
        plain = planner.fit(model, "95%", **said)
        eager = capture(model, inputs).eager_peak_bytes
    assert eager is not None, "it was asked for"
    peak, _, seconds = measured(model)
    expected = eager - outside_bytes(plain)
    ok = abs(peak / expected - 1) < 0.03
    yield row("large", f"{name}, eager", "bytes", peak, expected, "3%", ok)
    ok = 0.5 < seconds / plain.plain_seconds < 2
    yield row("large", f"{name}, eager", "seconds", seconds, plain.plain_seconds, "2x", ok)
    with checkpointed(model):
        least, _, slow = measured(model)
    yield row("large", f"{name}, checkpointed", "bytes", least, peak, "", ok=True)
    yield row("large", f"{name}, checkpointed", "times eager", slow / seconds, "", "", ok=True)
    resident = plain.graph.resident_bytes
    moving = plain.plain_peak_bytes - resident
    budgets = {f"{x:.0%}": resident + int(x * moving) for x in (1.0, 0.6, 0.4)}
    budgets["as checkpointed"] = int(1.01 * least) + outside_bytes(plain)
    for within, budget in budgets.items():
        with forward:
            try:
                plan = planner.fit(model, budget, **said)
            except planner.InfeasibleBudget as error:
                plan = planner.fit(model, error.least_bytes, **said)
        ours, reserved, took = measured(plan.apply(model))
        case = f"{name}, {within}, +{plan.overhead:.1%}"
        expected = allocated_bytes(plan)
        ok = abs(ours / expected - 1) < 0.02
        yield row("large", case, "bytes", ours, expected, "2%", ok)
        if plan.needs is not None:
            most = plan.needs.reserved_bytes - outside_bytes(plan)
            yield row("large", case, "reserved", reserved, most, "+2%", reserved <= 1.02 * most)
        ratio, estimate = took / seconds, plan.seconds / plan.plain_seconds
        ok = ratio < estimate + 0.1
        yield row("large", case, "times eager", ratio, estimate, "+0.1", ok)
