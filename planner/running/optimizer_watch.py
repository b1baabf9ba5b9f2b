"""What the first step of an optimizer tells of a loop: that no plan ran, or that it holds more.

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
from planner.graphs.capture.placed import local_of
from planner.graphs.torch_api.pytree import tree_leaves
from planner.graphs.torch_api.storages import storage_key
from planner.plan.step_plan import StepPlan
from planner.progress import PlannerWarning
from planner.running.out_of_memory import Account
from planner.running.states_on_host import is_offloaded, storages_on_host


def watch_optimizer(account: Account, model: nn.Module) -> None:
    """Look once at the optimizer that takes a step of a model's parameters.

    Args:
        account: of the model's plan and its runs.
        model: what the watching ends with.
    """
    owned = {id(p) for p in model.parameters()}
    looked = False

    def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        nonlocal looked  # torch goes through its hooks just now: none may be removed
        if looked:
            return
        if any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            looked = True
            if account.runs == 0:
                _tell_unused()
            elif account.plan.optimizer is not None:  # a plan without has said that none is counted
                _tell_states(account.plan, optimizer)

    handle = register_optimizer_step_post_hook(stepped)
    weakref.finalize(model, handle.remove)


def _tell_unused() -> None:
    warnings.warn(
        "an optimizer took a step and no call of the planned model has run the plan, so that "
        "nothing limits the memory: the training step calls submodules of it (self.net(x)) or the "
        "model as it was before; call the planned model, or plan the submodule that is called",
        PlannerWarning,
        stacklevel=4,
    )


def _tell_states(plan: StepPlan, optimizer: Optimizer) -> None:
    if plan.states is not None and not is_offloaded(optimizer):
        warnings.warn(
            f"the plan has {format_bytes(plan.states.moved_bytes)} of the optimizer's states on "
            f"the host, and this {type(optimizer).__name__} keeps them on the device, beyond the "
            "budget perhaps: call plan.offload_states(optimizer, model) where it is made",
            PlannerWarning,
            stacklevel=4,
        )
        return
    planned = sum(v.size_bytes for v in plan.graph.values if v.kind is Kind.OPTIMIZER)
    leaves = map(local_of, tree_leaves(list(optimizer.state.values())))
    held = {storage_key(x): x.untyped_storage().nbytes() for x in leaves if isinstance(x, Tensor)}
    away = storages_on_host(optimizer)
    beyond = sum(size for key, size in held.items() if key not in away) - planned
    if beyond > 0 and plan.peak_bytes + beyond > plan.budget_bytes:
        warnings.warn(
            f"the states of {type(optimizer).__name__} hold {format_bytes(beyond)} more than those "
            f"planned for {plan.optimizer}, for which the budget of "
            f"{format_both(plan.budget_bytes)} has no room; pass the optimizer that is used as "
            "optimizer= to planner.fit",
            PlannerWarning,
            stacklevel=4,
        )
