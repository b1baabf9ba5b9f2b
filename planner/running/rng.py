"""What a program calls beside torch's own operators, so that a kernel runs as it first did.

Knows random generators and a kernel that asks whether gradients are enabled. Knows nothing of
programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planner.errors import PlanMismatch


def rng_state(device: torch.device) -> Tensor:
    """Return the state of a device's default generator.

    Raises:
        PlanMismatch: a CUDA graph is being captured. Its replays draw from where the generator is
            then, whatever state was set while capturing: the op run again would draw other numbers.
    """
    if device.type == "cpu":
        return torch.get_rng_state()
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise PlanMismatch(
            "the plan runs a random op again, which a CUDA graph cannot: its replays would draw "
            "other numbers the second time. Run the planned model outside torch.cuda.graph and "
            "make_graphed_callables, or plan it without dropout"
        )
    return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]


def run_with_rng_state(
    state: Tensor, device: torch.device, target: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call an op as if the generator were in another state; leave the generator as it is."""
    now = rng_state(device)
    _set_rng_state(state, device)
    try:
        return target(*args, **kwargs)
    finally:
        _set_rng_state(now, device)


def run_for_backward(target: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel that makes its workspace for backward only if gradients are enabled."""
    with torch.enable_grad():
        return target(*(a.detach() if isinstance(a, Tensor) else a for a in args))


def _set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
