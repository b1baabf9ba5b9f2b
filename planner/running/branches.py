"""Which program a call is for: at its sizes, and where its data answer what the model asks.

A model that asks whether a mask has a gap does one step for batches with gaps, another for those
without. Each such branch is a runtime of its own within the same budget. Knows how branches are
found again. Knows nothing of what is done about a call that no program is for.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from planner.errors import CaptureError, InfeasibleBudget, PlanMismatch
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call import device_of, fake_call
from planner.graphs.capture.trace import answers_of
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.progress import PlannerWarning
from planner.running.planned_module import unplanned
from planner.running.program import Program
from planner.running.runtime import Runtime, at_sizes, planned_anew, runtime_of
from planner.running.variants import Departure

DEEPEST = 16
"""Questions in a row that a call may answer otherwise, each leading to others."""
_MANY = 8


def program_of(runtime: Runtime, model: nn.Module, call: Arguments) -> Program | Departure:
    """Return the program that a call is for, or why there is none.

    Args:
        runtime: of the plan.
        model: as it is now.
        call: what it is called with.

    Raises:
        PlannerError: the step at these sizes, or of this branch, cannot be traced or planned.
    """
    for _ in range(DEEPEST):
        found = at_sizes(runtime, model, call).variants.of(model, call)
        if isinstance(found, Program) or found.failed:
            break
        if found.answers is not None:
            runtime = _branch(runtime, model, call, found)
        elif found.filled and runtime.replan is not None:
            runtime = _settled(runtime, model, call, found)
        else:
            break
    return found


def _settled(runtime: Runtime, model: nn.Module, call: Arguments, departure: Departure) -> Runtime:
    """Return the runtime for a call that finds filled what the step before it filled."""

    def make() -> Runtime:
        made = _planned(runtime, model, call, departure)
        return replace(made, replan=runtime.replan)

    now = lambda: runtime.variants.key(model, call)  # noqa: E731
    return runtime.branches.get(departure.text, make, circumstances=now)


def _branch(runtime: Runtime, model: nn.Module, call: Arguments, departure: Departure) -> Runtime:
    """Return the runtime for other answers: the plan's own, if they lead to the same graph."""

    def make() -> Runtime:
        plain, plan = unplanned(model), runtime.plan
        try:
            answers = answers_of(plain, call, loss=runtime.loss)
        except GraphsCaptureError as error:
            raise CaptureError(f"{departure.text}; with that, {error}") from error
        signature: dict[str, Any] = {**plan.signature, "answers": list(answers)}
        try:
            same = runtime_of(replace(plan, signature=signature), plain, runtime.loss)
        except PlanMismatch as error:
            if runtime.replan is None:
                raise PlanMismatch(f"{departure.text}; with that, {error}") from error
            largest = replace(fake_call(signature, home=device_of(model)), answers=answers)
            same = _planned(runtime, model, largest, departure)
        _tell(runtime, departure)
        return replace(same, replan=runtime.replan)

    now = lambda: runtime.variants.key(model, call)  # noqa: E731
    return runtime.branches.get(departure.answers, make, circumstances=now)


def _planned(
    runtime: Runtime, model: nn.Module, largest: Arguments, departure: Departure
) -> Runtime:
    try:
        return planned_anew(runtime, model, largest)
    except InfeasibleBudget as error:
        raise PlanMismatch(f"{departure.text}, and the step that they lead to: {error}") from error


def _tell(runtime: Runtime, departure: Departure) -> None:
    if len(runtime.branches) + 1 == _MANY:
        warnings.warn(
            f"the step has {_MANY} branches by what the model asks of its inputs, each planned by "
            f"itself when it is first met: {departure.text}; this takes time: pass what is asked "
            "as an argument that is the same for most calls",
            PlannerWarning,
            stacklevel=6,
        )
