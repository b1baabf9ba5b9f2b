"""What a ``DTensor`` holds itself, and a placement that torch has for itself alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def local_part(tensor: Any) -> Tensor:
    """Return the very tensor that a ``DTensor`` holds, where ``to_local`` may make a view of it.

    Args:
        tensor: a ``DTensor``; one that is a parameter has a part that is none.
    """
    part: Tensor = tensor._local_tensor
    return part


def shard_of_each(dim: int, count: int) -> Any:
    """Return the placement that parts each of several things that lie along one dimension.

    Args:
        dim: that dimension.
        count: of the things, which are equally large.

    >>> shard_of_each(0, 1)
    Shard(dim=0)
    """
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    return Shard(dim) if count == 1 else _StridedShard(dim, split_factor=count)
