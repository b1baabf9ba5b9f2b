"""The arguments of one call of the model, flattened, however users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.pytree import TreeSpec, tree_flatten, tree_unflatten

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call, flattened: tensors apart, everything else a constant.

    ``answers`` are what the model is told when it asks for values of tensors without data.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    answers: tuple[Any, ...] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor leaves, in order."""
        return tuple(x for x in self.leaves if isinstance(x, Tensor))

    def rebuild(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any]]:
        """Return ``args, kwargs, targets`` with other tensors in place of these."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(x, Tensor) else x for x in self.leaves]
        args, kwargs, targets = tree_unflatten(leaves, self.spec)
        return args, kwargs, targets


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any], targets: Any = None) -> Arguments:
    """Flatten a call.

    Args:
        args: the positional arguments.
        kwargs: the named ones, in any order.
        targets: further arguments of the loss callable: one, or a tuple.
    """
    extra = () if targets is None else targets if isinstance(targets, tuple) else (targets,)
    leaves, spec = tree_flatten((tuple(args), dict(sorted(kwargs.items())), extra))
    return Arguments(tuple(leaves), spec)


def arguments_of(inputs: Inputs | Arguments, targets: Any = None) -> Arguments:
    """Flatten ``inputs`` as users write them: a tensor, a tuple (positional) or a dict (keywords).

    Raises:
        CaptureError: none of these.

    >>> import torch
    >>> arguments_of({"x": torch.zeros(2), "flag": True}).tensors
    (tensor([0., 0.]),)
    """
    if isinstance(inputs, Arguments):
        return inputs
    if isinstance(inputs, Tensor):
        return arguments((inputs,), {}, targets)
    if isinstance(inputs, tuple | list):
        return arguments(inputs, {}, targets)
    if isinstance(inputs, Mapping) and all(isinstance(k, str) for k in inputs):
        return arguments((), inputs, targets)
    raise CaptureError(
        f"inputs are a {type(inputs).__name__}; expected a tensor, a tuple of positional arguments "
        "or a dict of keyword arguments"
    )
