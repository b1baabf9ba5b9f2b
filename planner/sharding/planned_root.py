"""The root of a sharded model as a program of its own, which calls the units as they are.

Without one torch runs the root: its ops in the model's order, and its loss outside of any plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import nn

from planner.errors import PlanMismatch
from planner.graphs import plain_schedule
from planner.graphs.capture.guards.call import autocast_as, device_of
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.hollow_units import HollowUnit, as_operators, hollowed
from planner.graphs.capture.opaque_units import Stub
from planner.graphs.capture.recapture import recapture
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.torch_api.late_tensors import LateTensor
from planner.graphs.torch_api.pytree import tree_leaves
from planner.plan.step_plan import StepPlan
from planner.running.apply import dispatch, require_own_forward
from planner.running.engines import engine_of
from planner.running.held_memory import HeldMemory
from planner.running.planned_module import derived, unplanned
from planner.running.program import Program
from planner.running.runtime import runtime_of
from planner.sharding.wrapped.boundary import stub_of

if TYPE_CHECKING:
    from planner.plan.sharded_step_plan import ShardedStepPlan


def planned_root(
    plan: ShardedStepPlan,
    model: nn.Module,
    *,
    on_mismatch: str,
    loss: Callable[..., Any] | None = None,
) -> type[nn.Module]:
    """Return a class derived from the model's own whose ``forward`` runs the root's program.

    Args:
        plan: which plans the root, too.
        model: as it was before anything was sharded, in the precision that it computes in.
        on_mismatch: what a call does that is not the planned one: "error" or "plain".
        loss: the callable that the plan was made with, if it comes from a file.

    Raises:
        PlanMismatch: the model is not the one the plan was made for; the message says why.
    """
    require_own_forward(model)
    step, loss, base = _step_of(plan), loss or plan.step.loss, type(model)
    lowered = plan.configuration.computes_in == "bfloat16"
    dtype = torch.bfloat16 if lowered else None
    units = {u.path: HollowUnit(u.path, model.get_submodule(u.path), dtype) for u in plan.units}
    stubs = _stubs(plan, model)
    write = engine_of(step.engine).program
    assert write is not None, "chunks were refused for other engines"

    def trace(now: nn.Module, lifted: Sequence[Path]) -> Program:
        with as_operators(units, stubs):
            return write(step, unplanned(now), loss, lifted)

    with hollowed(model, units):
        runtime = runtime_of(step, model, loss, trace)
    # gradients of earlier micro-steps are counted, if there are some
    held = HeldMemory(accumulate=True)
    runtime = replace(runtime, on_mismatch=on_mismatch, held=held)
    late: list[ref[LateTensor]] = []

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for before in (x for known in late if (x := known()) is not None):
            before.expire(_expired)
        with hollowed(self, units):
            output = dispatch(self, base, runtime, args, kwargs)
        late[:] = (ref(x) for x in tree_leaves(output) if isinstance(x, LateTensor))
        return output

    return derived(base, forward)


def _expired() -> PlanMismatch:
    return PlanMismatch(
        "logits of a sharded model whose loss is computed in chunks are read after its next call, "
        "when the weights they are computed from may be others: read them before"
    )


def _step_of(plan: ShardedStepPlan) -> StepPlan:
    """Return the root's step as a plan of its own."""
    root = plan.root
    assert root is not None, "only a root that is planned has a program"
    step = plan.part(root, plain_schedule(root.graph))
    return replace(step, rewrite=plan.step.rewrite)


def _stubs(plan: ShardedStepPlan, model: nn.Module) -> dict[str, Stub]:
    """Return what stands in for the call of each unit while the root is traced, by its path."""
    found = dict[int, Stub]()
    for unit in plan.units:
        if unit.kind in found:
            continue
        module, signature = model.get_submodule(unit.path), plan.kinds[unit.kind].signature
        try:
            with autocast_as(signature, device_of(module).type):
                again = recapture(module, dict(signature), None)
        except GraphsCaptureError as error:
            raise PlanMismatch(
                f"unit {unit.path!r}: the planned step can no longer be captured: {error}"
            ) from error
        found[unit.kind] = stub_of(again.joint)
    return {unit.path: found[unit.kind] for unit in plan.units}
