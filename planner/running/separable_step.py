"""An optimizer's step taken for some of its parameters at a time, and whether that is the same."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from planner.errors import BadRequest
from planner.graphs.capture.optimizer_step import twin_of


def require_separable(optimizer: Optimizer, device: torch.device) -> None:
    """Refuse an optimizer that steps parameters otherwise together than apart, on two small ones.

    Gradients are of usual size, then large and small, which what clips or scales all of them
    together tells apart; rates of zero, as a warmup begins with, would hide what is computed.

    Raises:
        BadRequest: it does, or cannot be stepped like that.
    """
    for group in optimizer.param_groups:
        options = {k: v for k, v in group.items() if k != "params"}
        if options.get("lr") is not None and not options["lr"]:
            options["lr"] = 1e-3
        try:
            whole = _tried(optimizer, options, device, [[0, 1]])
            parted = _tried(optimizer, options, device, [[0], [1]])
        except Exception as error:
            raise BadRequest(
                f"{type(optimizer).__name__} cannot take its step a part of the parameters at a "
                f"time: {type(error).__name__}: {error}"
            ) from error
        if not _equal(whole, parted):
            raise BadRequest(
                f"{type(optimizer).__name__} does not treat each parameter by itself, or counts "
                "steps for all of them, or has one tensor for several states: its step cannot be "
                "taken in parts, with states that come and go; plan without offload's states"
            )


def _tried(
    optimizer: Optimizer, options: dict[str, Any], device: torch.device, parts: list[list[int]]
) -> list[Any]:
    """Return all that is left after three steps with two small parameters, in such parts.

    States come and go if there are several parts.
    """
    made = torch.Generator().manual_seed(0)
    small = [nn.Parameter(torch.randn(4, 4, generator=made).to(device)) for _ in range(2)]
    twin = twin_of(optimizer, [{**copy.deepcopy(options), "params": small}])
    own = {k: v for k, v in vars(twin).items() if k not in {"state", "param_groups"}}
    vars(twin).update(_copied(own))
    for size in (1.0, 1e6, 1e-6):
        for p in small:
            p.grad = size * torch.randn(4, 4, generator=made).to(device)
        for part in parts:
            with only(twin, {id(small[i]) for i in part}):
                own_step(twin)()
            for state in (twin.state.get(small[i], {}) for i in part if len(parts) > 1):
                state.update({k: v.clone() for k, v in state.items() if moves(v)})
    states = [twin.state.get(p, {}) for p in small]
    states.append({k: v for k, v in twin.state.items() if not isinstance(k, Tensor)})
    left = {k: v for k, v in vars(twin).items() if k in own}
    return [small, states, [{**g, "params": 0} for g in twin.param_groups], left]


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """Copy what can be copied: the optimizer itself is not to change."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - a lock, a handle: left as it is
            found[name] = value
    return found


def _equal(one: Any, other: Any) -> bool:
    """Compare trees of tensors and plain values; what cannot be told apart is equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        keys = one.keys() == getattr(other, "keys", dict)()
        return keys and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    plain = isinstance(one, int | float | complex | str | bytes | None)
    return bool(one == other) if plain else True


def own_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the step of an optimizer's class, without the hooks around it."""
    whole = type(optimizer).step
    bare = getattr(whole, "__wrapped__", whole)
    return types.MethodType(bare, optimizer)


def moves(state: Any) -> bool:
    """Tell what goes to the host from the count of steps.

    Args:
        state: of a parameter.
    """
    return isinstance(state, Tensor) and state.numel() > 1


@contextmanager
def only(optimizer: Optimizer, own: set[int]) -> Iterator[None]:
    """Let an optimizer have some of its parameters alone."""
    whole: list[tuple[dict[str, Any], list[Tensor]]] = []
    for group in optimizer.param_groups:
        whole.append((group, group["params"]))
        group["params"] = [p for p in group["params"] if id(p) in own]
    try:
        yield
    finally:
        for group, params in whole:
            group["params"] = params
