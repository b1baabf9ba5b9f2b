"""One call of a planned step: what is released before, run, noted and put in its place after.

Knows what a call leaves beside its result. Knows nothing of which program it is for.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from planner.errors import CapacityExceeded, CheckFailed, PlanMismatch
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.checks import Check
from planner.graphs.capture.step_function import unique_tensors
from planner.graphs.expert_capacity import CapacityError
from planner.graphs.torch_api.saved_hooks import hook_around
from planner.progress import PlannerWarning
from planner.running.autograd_node import execute
from planner.running.held_memory import HeldMemory
from planner.running.out_of_memory import Account
from planner.running.program import Program


def run(
    program: Program,
    model: nn.Module,
    call: Arguments,
    held: HeldMemory,
    account: Account | None = None,
) -> Any:
    """Run the planned step's forward half; autograd will run the other.

    Args:
        program: the call's.
        model: whose parameters, buffers and attributes it works on.
        call: its inputs.
        held: what is held beside it.
        account: what was planned, to be told if memory runs out.

    Raises:
        PlanMismatch: hooks that are not torch's are to see what autograd saves.
    """
    _refuse_hooks()
    parameters, buffers = unique_tensors(model)
    found, modules = program.outputs, list(model.modules())
    numbers = [torch.tensor(p.find(modules), dtype=torch.float64) for p in program.lifted]
    tensors = [*parameters.values(), *buffers.values(), *call.tensors, *numbers]
    found.effects.release(modules)
    held.look(parameters.values())
    try:
        outputs = execute(program, tensors, account)
    except CapacityError as error:
        raise CapacityExceeded(str(error)) from None
    held.note(outputs)
    found.effects.replay(modules, outputs, tensors)
    for index, check in found.checks:
        if bool(outputs[index]) is not check.expected:
            tell_failed(check)
    return found.rebuild(outputs, tensors, PlanMismatch)


def _refuse_hooks() -> None:
    hook = hook_around()
    if hook is not None and torch.is_grad_enabled():
        raise PlanMismatch(
            f"a planned step runs inside saved_tensors_hooks({hook}, ...): what a plan keeps for "
            "its backward pass does not go through them, and eager mode's gradients may differ; "
            "leave that block around the call (torch's own save_on_cpu and checkpoints may stay; "
            "offload= plans what moves to the host)"
        )


def tell_failed(check: Check) -> None:
    """Say that a check of the model's code, which passed when it was planned, has failed.

    Args:
        check: that failed.

    Raises:
        CheckFailed: the model's own code would raise, too.
    """
    if check.raises:
        raise CheckFailed(
            f"the check at {check.source} fails for this call; the model's own code would raise "
            "there: call it without the plan to see its message"
        )
    warnings.warn(
        f"the check at {check.source} fails for this call; what the model would log there is not "
        "logged by a plan",
        PlannerWarning,
        stacklevel=5,
    )
