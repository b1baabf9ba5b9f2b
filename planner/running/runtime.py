"""A plan ready to run: its programs at the planned sizes and at smaller ones.

Knows when a program is traced for sizes of its own and when once for all. Knows nothing of what is
done about a call that no program is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from planner.errors import PlanMismatch
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call import differences, fake_call, signature_of
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.sizes import Sizes, at_smaller_sizes, sizes_of
from planner.graphs.torch_api.pytree import TreeSpec
from planner.plan.step_plan import StepPlan
from planner.running.any_size import AnySize
from planner.running.engines import engine_of
from planner.running.held_memory import HeldMemory
from planner.running.out_of_memory import Account
from planner.running.planned_module import unplanned
from planner.running.program import Program
from planner.running.recent import Recent
from planner.running.variants import Trace, Variants

SIZES = 32
"""For how many smaller sizes a program is kept."""

Replan = Callable[[StepPlan, nn.Module, Arguments, Callable[..., Any] | None], StepPlan]
"""Plans another call of a model within the budget of a plan, with the loss it was made with."""


@dataclass(frozen=True)
class Runtime:
    """A plan ready to run: its programs, and what is done about a call that is none of theirs.

    ``targets`` says whether its loss takes some.
    """

    variants: Variants
    plan: StepPlan
    spec: TreeSpec
    loss: Callable[..., Any] | None
    targets: bool
    on_mismatch: str = "error"
    replan: Replan | None = None
    replanned: Recent[Runtime] = field(default_factory=Recent)
    smaller: Recent[Runtime] = field(default_factory=lambda: Recent(SIZES))
    branches: Recent[Runtime] = field(default_factory=Recent)
    any_size: AnySize | None = None
    held: HeldMemory = field(default_factory=lambda: HeldMemory(accumulate=False))
    account: Account | None = None

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes that the programs are for, where they may be smaller."""
        leaves = self.plan.signature["leaves"]
        free = (leaves[i] for i, *_ in self.plan.signature.get("dynamic", ()))
        return tuple((tuple(shape), tuple(stride)) for shape, stride, *_ in free)


def runtime_of(
    plan: StepPlan,
    model: nn.Module,
    loss: Callable[..., Any] | None,
    trace: Trace | None = None,
) -> Runtime:
    """Return a plan ready to run, a mismatch an error.

    Args:
        plan: whose programs it has.
        model: that they are for.
        loss: the callable that the plan was made with.
        trace: makes the programs; by default the engine does, at the very sizes of the plan.

    Raises:
        PlanMismatch: the model does something else than was planned, or the loss is missing.
    """
    if plan.signature["loss"] and loss is None:
        raise PlanMismatch("the plan was made with a loss callable; pass the same one as loss=")
    variants = Variants(plan, model, trace or _at_these_sizes(plan, loss))
    planned = fake_call(plan.signature)
    targets = bool(planned.rebuild(planned.tensors)[2])
    write = engine_of(plan.engine).any_size
    any_size = write and AnySize(lambda now, lifted: write(plan, now, loss, lifted))
    held = HeldMemory(accumulate=bool(plan.signature.get("accumulate")))
    return Runtime(variants, plan, planned.spec, loss, targets, any_size=any_size, held=held)


def _at_these_sizes(plan: StepPlan, loss: Callable[..., Any] | None) -> Trace:
    write = engine_of(plan.engine).program
    assert write is not None, "an engine without programs makes a class of its own"
    return lambda now, lifted: write(plan, unplanned(now), loss, lifted)


def _at_any_size(runtime: Runtime, smaller: StepPlan) -> Trace:
    """Return what makes a program for smaller sizes of one written for all, if that serves them."""
    inputs = fake_call(smaller.signature).tensors
    alone = _at_these_sizes(smaller, runtime.loss)

    def trace(now: nn.Module, lifted: Sequence[Path]) -> Program:
        sized = runtime.any_size and runtime.any_size.of(unplanned(now), lifted)
        return (sized and sized.at(inputs)) or alone(now, lifted)

    return trace


def planned_anew(runtime: Runtime, model: nn.Module, call: Arguments) -> Runtime:
    """Return the runtime of a plan for another call, within the budget of a runtime's plan.

    Args:
        runtime: whose plan may be replanned.
        model: that is called.
        call: what with.

    Raises:
        CaptureError, InfeasibleBudget: as ``planner.fit`` does.
    """
    assert runtime.replan is not None, "checked by the caller"
    plain = unplanned(model)
    return runtime_of(runtime.replan(runtime.plan, plain, call, runtime.loss), plain, runtime.loss)


def at_sizes(runtime: Runtime, model: nn.Module, call: Arguments) -> Runtime:
    """Return the runtime for the sizes of a call: another, if they are smaller ones.

    The step is traced at these sizes, and when a second smaller one comes, once for all sizes. If
    it is the planned one, no value larger, the plan's schedule stays within its peak; if the model
    does something else then, that is planned.

    Args:
        runtime: at the largest sizes.
        model: that is called.
        call: what with.

    Raises:
        PlannerError: it cannot be traced or planned.
    """
    planned = runtime.plan.signature
    sizes = sizes_of(planned, call)
    if sizes == runtime.sizes:
        return runtime
    if sizes not in runtime.smaller and at_smaller_sizes(planned, call) is planned:
        return runtime

    def make() -> Runtime:
        signature = at_smaller_sizes(planned, call)
        smaller = replace(runtime.plan, signature=signature)
        trace = _at_any_size(runtime, smaller) if runtime.smaller else None
        try:
            return runtime_of(smaller, unplanned(model), runtime.loss, trace)
        except PlanMismatch:
            if runtime.replan is None:
                raise
            found = signature_of(model, call, loss=runtime.loss is not None)
            if any(differences(signature, found)):  # it is no smaller call of the planned step
                raise
        return planned_anew(runtime, model, call)

    now = lambda: runtime.variants.key(model, call)  # noqa: E731
    return runtime.smaller.get(sizes, make, circumstances=now)
