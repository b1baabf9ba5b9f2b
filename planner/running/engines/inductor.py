"""The engine that runs a plan through ``torch.compile``: Inductor's fused kernels.

Its graph is of the kernels that Inductor makes. A schedule is carried out as a joint graph in which
recomputation is explicit, handed to Inductor where it cuts forward from backward. Gradients are
those of Inductor without a plan. Inductor, which is slow to import, is so where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from planner.graphs import Schedule, plain_schedule
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.training_step import Captured
from planner.graphs.capture_error import CaptureError
from planner.plan.step_plan import StepPlan
from planner.request import Request
from planner.running.engines.engine import (
    Applied,
    CapturedUnit,
    Engine,
    OwnWay,
    UnitsEngine,
    register_engine,
)
from planner.running.engines.kept_promise import least_known, remarks, settled

UNITS = (
    "units are compiled by Inductor at their first call, those with one schedule once; what is "
    "around them runs as it does without a plan"
)

INDUCTOR = "inductor"


def _captured(request: Request, rewrite: str) -> Captured:
    from planner.running.engines.compiled_capture import captured

    return captured(request, rewrite)


def _forward(plan: StepPlan, model: nn.Module, applied: Applied) -> Callable[..., Any]:
    from planner.running.compiled_model import forward

    return forward(plan, model, applied)


def _check(model: nn.Module) -> None:
    from planner.running.engines.compiled_capture import require_data

    require_data(model)


def _captured_unit(unit: nn.Module, call: Arguments, request: Request) -> CapturedUnit:
    from planner.running.engines.compiled_unit import captured_unit

    return captured_unit(unit, call, request)


def _held_unit(unit: CapturedUnit, schedule: Schedule) -> CapturedUnit:
    from planner.running.engines.compiled_unit import held_unit

    return held_unit(unit, schedule)


def _unit_remarks(device: str) -> tuple[str, ...]:
    return (UNITS, *remarks(device))


def _without_plan(model: nn.Module, loss: Callable[..., Any] | None) -> nn.Module:
    from planner.running.compiled_model import without_plan

    return without_plan(model, loss)


def _own_ways(captured: Captured) -> Iterator[OwnWay]:
    """Ask Inductor what it holds by default, and under each tenth of torch's own budget."""
    step = captured.compiled
    assert step is not None, "a compiler's step"
    assert step.with_share is not None, "it was captured"
    known: dict[str, OwnWay] = {}
    for tenth in range(10, -1, -1):
        name = INDUCTOR if tenth == 10 else f"activation_memory_budget {tenth / 10}"
        try:
            found = step if tenth == 10 else step.with_share(tenth / 10)
        except CaptureError as error:
            yield OwnWay(name, None, 0.0, str(error))
            continue
        asked = found.asked(plain_schedule(found.graph))
        if asked.written not in known:  # many tenths come to the same
            known[asked.written] = OwnWay(name, asked.peak_bytes, found.graph.seconds)
            yield known[asked.written]


register_engine(
    Engine(
        INDUCTOR,
        captured=_captured,
        sharded=True,
        units=UnitsEngine(_check, _captured_unit, _held_unit, _unit_remarks),
        forward=_forward,
        settle=settled,
        least=least_known,
        without_plan=_without_plan,
        own_ways=_own_ways,
    )
)
