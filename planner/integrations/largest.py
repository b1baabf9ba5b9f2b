"""A call made as large as calls will be, of the samples that it has.

Knows which dimensions of a call are its batch and its length. Knows nothing of models or plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from planner.graphs.capture.call_arguments import Arguments


@dataclass(frozen=True)
class Largest:
    """The most samples that a call will have, and the most tokens of one; ``None`` is not said."""

    batch: int | None = None
    length: int | None = None


UNSAID = Largest()


def enlarged(call: Arguments, largest: Largest, usual: Largest = UNSAID) -> Arguments:
    """Return a call with as many samples, and tokens each, as the largest has; never a smaller one.

    Samples and tokens are repeated, so that every value is one that may come.

    Args:
        call: its first tensor's dimension 0 is the batch; dimension 1 of its first tensor of
            integers is the length. Every other tensor is repeated where it is as long.
        largest: as the user says.
        usual: where the user says nothing, unless the call is of one row: that may hold many.

    >>> from planner.graphs.capture.call_arguments import arguments
    >>> call = arguments((), {"ids": torch.zeros(2, 5, dtype=torch.long), "items": torch.tensor(7)})
    >>> shown(enlarged(call, Largest(4, 8)))
    'int64[4, 8], int64[]'
    """
    samples = next((t.shape[0] for t in call.tensors if t.dim()), 0)
    tokens = next((t.shape[1] for t in call.tensors if _counts(t) and t.dim() > 1), 0)
    expected = usual if samples > 1 else UNSAID
    batch = max(samples, largest.batch or expected.batch or 0)
    length = max(tokens, largest.length or expected.length or 0)
    if (batch, length) == (samples, tokens):
        return call
    leaves = tuple(
        _repeated(leaf, (samples, batch), (tokens, length)) if isinstance(leaf, Tensor) else leaf
        for leaf in call.leaves
    )
    return replace(call, leaves=leaves)


def shown(call: Arguments) -> str:
    """Return the tensors of a call for people."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in call.tensors)


def _counts(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _repeated(tensor: Tensor, batch: tuple[int, int], length: tuple[int, int]) -> Tensor:
    """Return a tensor repeated along the dimensions that are as long as the call's."""
    for dim in range(tensor.dim()):
        here, largest = length if dim else batch
        if here and tensor.shape[dim] == here:
            index = torch.arange(largest, device=tensor.device) % here
            tensor = tensor.index_select(dim, index)
    return tensor
