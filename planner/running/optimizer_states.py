"""An optimizer that holds more than was planned for, noticed after its first step.

Knows which optimizer steps a model's parameters. Says nothing where the budget has room.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from planner.byte_sizes import format_both, format_bytes
from planner.graphs import Kind
from planner.graphs.torch_api.pytree import tree_leaves
from planner.graphs.torch_api.storages import storage_key
from planner.plan.step_plan import StepPlan
from planner.progress import PlannerWarning


def watch_states(plan: StepPlan, model: nn.Module) -> None:
    """Look once at the optimizer that takes a step of a model's parameters.

    Args:
        plan: of the model; one made without an optimizer has said that none is counted.
        model: what the watching ends with.
    """
    if plan.optimizer is None:
        return
    owned = {id(p) for p in model.parameters()}

    def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            handle.remove()
            _tell(plan, optimizer)

    handle = register_optimizer_step_post_hook(stepped)
    weakref.finalize(model, handle.remove)


def _tell(plan: StepPlan, optimizer: Optimizer) -> None:
    planned = sum(v.size_bytes for v in plan.graph.values if v.kind is Kind.OPTIMIZER)
    leaves = tree_leaves(list(optimizer.state.values()))
    held = {storage_key(x): x.untyped_storage().nbytes() for x in leaves if isinstance(x, Tensor)}
    beyond = sum(held.values()) - planned
    if beyond > 0 and plan.peak_bytes + beyond > plan.budget_bytes:
        warnings.warn(
            f"the states of {type(optimizer).__name__} hold {format_bytes(beyond)} more than those "
            f"planned for {plan.optimizer}, for which the budget of "
            f"{format_both(plan.budget_bytes)} has no room; pass the optimizer that is used as "
            "optimizer= to planner.fit",
            PlannerWarning,
            stacklevel=4,
        )
