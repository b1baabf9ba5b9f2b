"""An optimizer whose states wait on the host, and come to the device a part at a time.

``offload_states`` has a torch optimizer take its step in the parts of a plan. Between steps the
states of the first parts lie on the host, where ``optimizer.state`` and ``state_dict`` find them.
Within a step those of a part come while the part before is computed, and go while the next one is.
Every part is the optimizer's own step on fewer parameters: no bit changes.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from planner.errors import BadRequest
from planner.graphs.capture.guards.call import device_of
from planner.graphs.capture.optimizer_parts import stepped_by
from planner.graphs.torch_api.module_internals import named_parameters_of
from planner.graphs.torch_api.optimizer_internals import is_scheduled, known_to_schedulers
from planner.graphs.torch_api.storages import storage_key
from planner.plan.step_plan import StepPlan
from planner.running.host_copies import way_of
from planner.running.separable_step import moves, own_step, require_separable
from planner.running.waiting_states import StatesInParts


def offload_states(optimizer: Optimizer, plan: StepPlan, model: nn.Module) -> Optimizer:
    """Let an optimizer keep states on the host as a plan says; return the same optimizer.

    Call it where the optimizer is made, before anything but a scheduler wraps its step. States that
    it has already go there at once, those of ``load_state_dict``, too.

    Args:
        optimizer: of the model's parameters; one that treats each of them by itself.
        plan: made with ``offload={"states": True}``. One that moves no states changes nothing.
        model: whose parameters the optimizer steps, planned or not.

    Example:
        >>> import planner
        >>> net = nn.Linear(8, 1)
        >>> said = {"inputs": torch.zeros(4, 8), "loss": torch.sum, "progress": "off"}
        >>> plan = planner.fit(net, "1MB", offload={"states": True}, **said)
        >>> adam = offload_states(torch.optim.AdamW(net.parameters()), plan, net)
        >>> plan.states is None  # there is room for them
        True

    Raises:
        BadRequest: the optimizer does not step parameters one by one, keeps states on the host
            already, or steps none of the model's, or something else is wrapped around its step.
        HostMemoryError: the host has no room for the states.
    """
    if not isinstance(optimizer, Optimizer) or not isinstance(model, nn.Module):
        raise BadRequest(
            f"offload_states was given a {type(optimizer).__name__} and a {type(model).__name__}: "
            "expected the optimizer, then the model"
        )
    if plan.states is None:
        return optimizer
    if is_offloaded(optimizer):
        raise BadRequest("the optimizer keeps states on the host already: make another one")
    parts = _parameters_of(plan, model)
    stepped = stepped_by(optimizer)
    if not any(id(p) in stepped for part in parts for p in part):
        raise BadRequest("the optimizer steps none of the parameters that the plan is for")
    expect_states(optimizer)
    directory = None if plan.host is None else plan.host.directory
    way = way_of(device_of(model), directory)
    moved = plan.states.moved_parts
    _ADOPTED[optimizer] = held = StatesInParts(optimizer, parts, moved, way, plan.states.room_bytes)
    held.send_all()
    return optimizer


def expect_states(optimizer: Optimizer) -> None:
    """Have an optimizer take its step in parts once its states wait, and as ever until then.

    For those who plan within a step: a closure computes the gradients in the step that they are
    for. Schedulers of its learning rate may be made before or after.

    Args:
        optimizer: one that treats each parameter by itself.

    Raises:
        BadRequest: it does not, or something else is wrapped around its step.
    """
    own = vars(optimizer).get("step")
    if hasattr(own, _IN_PARTS):
        return
    if own is not None and not is_scheduled(optimizer):
        raise BadRequest(
            f"something has replaced the step of {type(optimizer).__name__}: let its states wait "
            "on the host (offload_states) before whatever does that, such as an Accelerator that "
            'scales gradients (mixed_precision="fp16"), or leave offload\'s states out'
        )
    first = next(p for group in optimizer.param_groups for p in group["params"])
    require_separable(optimizer, first.device)
    optimizer.step = types.MethodType(_STEP, optimizer)  # type: ignore[method-assign]
    optimizer.register_load_state_dict_pre_hook(_before_loading)
    optimizer.register_load_state_dict_post_hook(_after_loading)


def bring_states_back(optimizer: Optimizer) -> None:
    """Let an optimizer have its states on the device again, if some wait on the host.

    Args:
        optimizer: any; it may be given to ``offload_states`` again.
    """
    if _ADOPTED.pop(optimizer, None) is not None:
        for p, states in optimizer.state.items():
            states.update({k: v.to(p.device, copy=True) for k, v in states.items() if moves(v)})


def _parameters_of(plan: StepPlan, model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of every part of a plan.

    Raises:
        BadRequest: the model lacks some, or has them in other shapes.
    """
    assert plan.states is not None, "there is a plan for them"
    by_name = dict(named_parameters_of(model))
    shapes = {name: tuple(shape) for name, shape, *_ in plan.signature.get("parameters", ())}
    for name in (n for names in plan.states.parts for n in names):
        found = by_name.get(name)
        if found is None or tuple(found.shape) != shapes.get(name, tuple(found.shape)):
            has = "has none" if found is None else f"has one of shape {tuple(found.shape)}"
            raise BadRequest(
                f"the plan is for a model with a parameter {name!r} of shape {shapes.get(name)}, "
                f"and this one {has}: give offload_states the model that was planned, not a part "
                "of it or what wraps it"
            )
    return [[by_name[n] for n in names] for names in plan.states.parts]


def storages_on_host(optimizer: Optimizer) -> set[Any]:
    """Return the storages of states that wait on the host, as ``storage_key`` names them.

    Args:
        optimizer: any.
    """
    held = _ADOPTED.get(optimizer)
    places = () if held is None else held.places.values()
    return {storage_key(place.shown) for place in places}


def is_offloaded(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer keeps states on the host.

    Args:
        optimizer: any.
    """
    return optimizer in _ADOPTED


def _step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    """Take a step of all parameters, in parts if states wait once the closure has run."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    held = _ADOPTED.get(optimizer)
    if held is None:
        own_step(optimizer)()
    else:
        held.step()
    return loss


def _before_loading(optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any] | None:
    held = _ADOPTED.get(optimizer)
    return None if held is None else held.taken_out(loaded)


def _after_loading(optimizer: Optimizer) -> None:
    if (held := _ADOPTED.get(optimizer)) is not None:
        held.put_in()


_IN_PARTS = "_states_may_wait"
_STEP = known_to_schedulers(Optimizer.profile_hook_step(_step))
"""What hooks and schedulers see as one step."""
setattr(_STEP, _IN_PARTS, True)

_ADOPTED: weakref.WeakKeyDictionary[Optimizer, StatesInParts] = weakref.WeakKeyDictionary()
