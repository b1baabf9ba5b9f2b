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
from planner.graphs.torch_api.storages import storage_key
from planner.plan.step_plan import StepPlan
from planner.running.host_copies import way_of
from planner.running.separable_step import require_separable
from planner.running.waiting_states import WaitingStates


def offload_states(optimizer: Optimizer, plan: StepPlan, model: nn.Module) -> Optimizer:
    """Let an optimizer keep states on the host as a plan says; return the same optimizer.

    Call it where the optimizer is made, before a scheduler or a scaler is. States that it has
    already go there at once, those of ``load_state_dict``, too.

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
        BadRequest: the optimizer does not step parameters one by one, is wrapped already, or steps
            none of the model's.
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
    if "step" in vars(optimizer):
        raise BadRequest(
            "the optimizer's step is wrapped already, by a scheduler perhaps: call offload_states "
            "first"
        )
    parts = _parameters_of(plan, model)
    stepped = stepped_by(optimizer)
    if not any(id(p) in stepped for part in parts for p in part):
        raise BadRequest("the optimizer steps none of the parameters that the plan is for")
    require_separable(optimizer, device_of(model))
    directory = None if plan.host is None else plan.host.directory
    way = way_of(device_of(model), directory)
    moved = plan.states.moved_parts
    _ADOPTED[optimizer] = held = WaitingStates(optimizer, parts, moved, way, plan.states.room_bytes)
    optimizer.step = types.MethodType(_whole_step(held), optimizer)  # type: ignore[method-assign]
    optimizer.register_load_state_dict_pre_hook(lambda _, state: held.taken_out(state))
    optimizer.register_load_state_dict_post_hook(lambda _: held.put_in())
    held.send_all()
    return optimizer


def _parameters_of(plan: StepPlan, model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of every part of a plan.

    Raises:
        BadRequest: the model lacks some, or has them in other shapes.
    """
    assert plan.states is not None, "there is a plan for them"
    by_name = dict(model.named_parameters())
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


def _whole_step(held: WaitingStates) -> Callable[..., Any]:
    """Return a step of all parts that hooks see as one."""

    def step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        del optimizer
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held.step()
        return loss

    return Optimizer.profile_hook_step(step)


_ADOPTED: weakref.WeakKeyDictionary[Optimizer, WaitingStates] = weakref.WeakKeyDictionary()
