"""The engine that runs a plan through ``torch.compile``: Inductor's fused kernels.

Its graph is of the kernels that Inductor makes. A schedule is carried out as a joint graph in which
recomputation is explicit, handed to Inductor where it cuts forward from backward. Gradients are
those of Inductor without a plan. Inductor, which is slow to import, is so where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from planner.solvers.baselines.blocks import repeated_blocks

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
    """Ask Inductor what it holds by default, with every block checkpointed, and under each tenth
    of torch's own budget.
    """
    from planner.graphs.capture.fused.origin import forward_modules

    step = captured.compiled
    assert step is not None, "a compiler's step"
    assert step.own_way is not None, "it was captured"
    modules = forward_modules(step.stitched.step.module.graph)
    blocks = repeated_blocks(modules.values())
    number = {block: i for i, block in enumerate(dict.fromkeys(blocks.values()))}
    inside = {node: number[blocks[path]] for node, path in modules.items() if path in blocks}
    ways: list[tuple[str, float, Mapping[str, int] | None]] = [(INDUCTOR, 1.0, None)]
    ways += [(f"checkpoint in {INDUCTOR}", 1.0, inside)] if inside else []
    ways += [(f"activation_memory_budget {n / 10}", n / 10, None) for n in range(9, -1, -1)]
    known: dict[str, OwnWay] = {}
    for name, share, checkpointed in ways:
        try:
            found = (
                step if name == INDUCTOR else step.own_way(share=share, checkpointed=checkpointed)
            )
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
