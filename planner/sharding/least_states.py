"""What a configuration's states hold at the least, told from the model's parameters: no capture."""

from __future__ import annotations

import re
from functools import partial
from itertools import groupby

import torch
from torch import nn

from planner.graphs.capture.optimizer_step import OptimizerLike
from planner.graphs.capture.placed import local_of
from planner.graphs.torch_api.module_internals import named_parameters_of
from planner.plan.configuration import Configuration
from planner.sharding.step_graph.optimizer_pass import optimizer_of
from planner.sharding.step_graph.step_rules import ModelStates, StepRules


def states_of(
    model: nn.Module, optimizer: OptimizerLike | None, *, accelerated: bool
) -> ModelStates:
    """Add up parameters, gradients and what the optimizer keeps of a whole model.

    Of torch's own optimizers a share of the state is no more than the state of a share: it grows as
    the elements do, or slower. Of another (a matrix for each side of a weight, say) that is not
    known, and nothing is counted.

    Args:
        model: what is trained.
        optimizer: a name or a class; none keeps nothing.
        accelerated: it does not run on a CPU.

    Raises:
        OptimizerError: its step cannot be run without data.

    >>> states_of(nn.Linear(9, 10, bias=False), "adamw_loop", accelerated=False)
    ModelStates(parameters=360, gradients=360, optimizer=724)
    """
    named = list(named_parameters_of(model))
    trained = [(name, local_of(p)) for name, p in named if p.requires_grad]
    parts = [
        tuple((tuple(p.shape), p.element_size()) for _, p in group)
        for _, group in groupby(trained, key=lambda item: _block(item[0]))
    ]
    kept = 0
    if _is_of_torch(optimizer):
        kept = optimizer_of(parts, optimizer, accelerated=accelerated).state_bytes
    held = sum(_bytes(local_of(p)) for _, p in named)
    return ModelStates(held, sum(_bytes(p) for _, p in trained), kept)


def least_states(states: ModelStates, c: Configuration) -> int:
    """Return bytes that a rank holds of states at the least; it has a share of every layer.

    Args:
        states: of the whole model.
        c: how it is spread.
    """
    return c.strategy.part(StepRules).least_states(states, c) // c.tensor_ranks


def _is_of_torch(optimizer: OptimizerLike | None) -> bool:
    if isinstance(optimizer, str):
        return True
    kind = optimizer.func if isinstance(optimizer, partial) else optimizer
    made = kind if isinstance(kind, type) else type(kind)
    return made.__module__.startswith("torch.optim.")


def _block(name: str) -> str:
    """Return the path of the numbered module that a parameter is in, if it is in one."""
    found = re.match(r"(.*?\.)?\d+\.", name)
    return found.group() if found else ""


def _bytes(p: torch.Tensor) -> int:
    return p.numel() * p.element_size()
