"""An optimizer's step in parts: what each holds and takes, so that states may wait on the host.

An optimizer that treats every parameter by itself may take its step a part of the parameters at a
time: same bits, and the states of the others need not be on the device meanwhile. Knows how such
parts are made and measured on fake tensors. Knows nothing of where states wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from planner.graphs.capture.optimizer_step import (
    OptimizerLike,
    optimizer_step,
    twin_of,
)
from planner.graphs.hardware.devices import Device


@dataclass(frozen=True, slots=True)
class StatePart:
    """Some of the parameters, and what a step of the optimizer takes for them alone.

    ``workspace_bytes`` are its temporaries, ``seconds`` what it computes, ``calls`` included.
    """

    parameters: tuple[str, ...]
    state_bytes: int
    workspace_bytes: int
    seconds: float


def state_parts(
    parameters: Mapping[str, Tensor],
    optimizer: OptimizerLike,
    device: Device,
    *,
    kernels: str = "cpu",
    count: int,
) -> tuple[StatePart, ...]:
    """Split the parameters into parts of about equal bytes, in their order, and price each.

    Args:
        parameters: the trainable ones by name; real, fake or on meta.
        optimizer: as for ``optimizer_step``, which raises the same errors.
        device: where the step runs.
        kernels: the type of device whose defaults hold.
        count: how many parts at most.

    >>> import torch
    >>> from planner.graphs.hardware.devices import cpu
    >>> weights = {n: torch.empty(1000, device="meta") for n in "abcd"}
    >>> [(p.parameters, p.state_bytes) for p in state_parts(weights, "adamw", cpu(), count=2)]
    [(('a', 'b'), 16008), (('c', 'd'), 16008)]
    """
    found: list[StatePart] = []
    for names in _split({n: p.numel() * p.element_size() for n, p in parameters.items()}, count):
        some = [parameters[n] for n in names]
        step = optimizer_step(some, _for(optimizer, some), device="cpu", kernels=kernels)
        seconds = step.seconds_on(device)
        found.append(StatePart(names, step.state_bytes, step.workspace_bytes, seconds))
    return tuple(found)


def stepped_by(optimizer: Optimizer) -> set[int]:
    """Return the ids of the parameters that an optimizer steps.

    Args:
        optimizer: any.
    """
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _split(sizes: Mapping[str, int], count: int) -> list[tuple[str, ...]]:
    total, done, parts = sum(sizes.values()), 0, list[list[str]]()
    for name, size in sizes.items():
        if not parts or done >= total * len(parts) / count:
            parts.append([])
        parts[-1].append(name)
        done += size
    return [tuple(names) for names in parts]


def _for(optimizer: OptimizerLike, some: Sequence[Tensor]) -> OptimizerLike:
    """Return what makes the same optimizer for some of the parameters alone."""
    if not isinstance(optimizer, Optimizer):
        return optimizer
    ours = {id(p) for p in some}
    groups = [
        {**group, "params": kept}
        for group in optimizer.param_groups
        if (kept := [p for p in group["params"] if id(p) in ours])
    ]
    return twin_of(optimizer, groups)
