"""Do plans for the compiled engine, with the host or in chunks keep their word?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import planner
from benchmarks.gpu.models import (
    MODELS,
    gpt2,
    llama,
    on,
    peak_of,
    seconds_of,
    stepper,
    vocabulary,
)
from benchmarks.gpu.plans import half_way, held, outside_bytes
from benchmarks.gpu.rows import Row, row
from benchmarks.gpu.steps import trained
from planner.verification.difference import compare_tensors


def compiled(kind: str) -> Iterator[Row]:
    """Compare steps that Inductor runs with what it was asked, and with its own gradients."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        torch._dynamo.reset()
        usual: nn.Module = torch.compile(model)  # type: ignore[assignment]
        own = trained(usual, inputs, of=model)
        again = compare_tensors(own, trained(usual, inputs, of=model)).relative
        seconds = seconds_of(kind, stepper(usual, inputs))
        for share in (1.0, 0.5):
            plan = half_way(model, inputs, share, engine="inductor")
            planned = plan.apply(model)
            found = compare_tensors(own, trained(planned, inputs)).relative
            step = stepper(planned, inputs)
            yield from _kept(kind, "compiled", f"{name}, {share:.0%}", model, inputs, step, plan)
            ok = found <= max(again, 1e-2)
            yield row("compiled", f"{name}, {share:.0%}", "difference", found, again, "1e-2", ok)
            took = seconds_of(kind, step)
            ok = took < 1.25 * seconds * plan.seconds / plan.plain_seconds
            yield row("compiled", f"{name}, {share:.0%}", "seconds", took, seconds, "1.25x", ok)


def _kept(  # noqa: PLR0917
    kind: str,
    check: str,
    case: str,
    model: nn.Module,
    inputs: dict[str, Tensor],
    step: Callable[[], float],
    plan: planner.Plan,
) -> Iterator[Row]:
    """Compare what a step holds with what its plan says."""
    step()
    measured = peak_of(kind, model, inputs, step)
    yield held(check, f"{case}, +{plan.overhead:.1%}", measured, plan)
    room = plan.budget_bytes - outside_bytes(plan)
    yield row(check, case, "bytes", measured, room, "the budget", measured <= room)


def moved(kind: str) -> Iterator[Row]:
    """Compare plans that move values, or the optimizer's states, to the host with eager mode."""
    for name, build, options in (
        ("gpt2", gpt2, {"offload": True}),
        ("llama", llama, {"offload": True}),
        ("gpt2, states", gpt2, {"offload": {"states": True}}),
    ):
        model, inputs = on(kind, build)
        plain = trained(model, inputs)
        again = compare_tensors(plain, trained(model, inputs)).relative
        plan = half_way(model, inputs, 0.35, **options)
        planned = plan.apply(model)
        found = compare_tensors(plain, trained(planned, inputs)).relative
        yield row("moved", name, "largest difference", found, again, "eager's own", found <= again)
        optimizer = plan.offload_states(torch.optim.AdamW(model.parameters()), planned)
        step = stepper(planned, inputs, optimizer)
        yield from _kept(kind, "moved", name, model, inputs, step, plan)
        took = seconds_of(kind, step)
        within = 0.5 < took / plan.seconds < 2 or kind == "cpu"
        yield row("moved", name, "seconds", took, plan.seconds, "2x", within)


def chunks(kind: str) -> Iterator[Row]:
    """Compare steps whose loss is taken in chunks with eager mode."""
    options: dict[str, Any]
    for options in ({"loss_chunks": 4, "logits": "when_read"}, {"mlp_chunks": 4}):
        model, inputs = on(kind, vocabulary)
        plain = trained(model, inputs)
        plan = half_way(model, inputs, 0.5, **options)
        planned = plan.apply(model)
        found = compare_tensors(plain, trained(planned, inputs)).relative
        name = next(iter(options))
        yield row("chunks", name, "largest difference", found, 0.0, "1e-4", found < 1e-4)
        yield from _kept(kind, "chunks", name, model, inputs, stepper(planned, inputs), plan)


def measured(kind: str) -> Iterator[Row]:
    """Compare the time of a step with what its ops took one by one."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        said: dict[str, Any] = {"inputs": inputs, "progress": "off", "costs": "measured"}
        plan = planner.fit(model, "90%", **said, optimizer="sgd")
        step = stepper(plan.apply(model), inputs, torch.optim.SGD(model.parameters()))
        took = seconds_of(kind, step)
        within = 0.67 < took / plan.seconds < 1.5 or kind == "cpu"
        yield row("measured", name, "seconds", took, plan.seconds, "1.5x", within)
