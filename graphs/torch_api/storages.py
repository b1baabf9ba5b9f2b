"""What tells one storage from another, and whether somebody wrote into it."""

from __future__ import annotations

from torch import Tensor


def storage_key(tensor: Tensor) -> int:
    """Return a number that only tensors on the same storage have, fakes and views included.

    It may be given again once the storage is gone.

    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> storage_key(x) == storage_key(x.t()), storage_key(x) == storage_key(x.clone())
    (True, False)
    """
    return int(tensor.untyped_storage()._cdata)


def write_count(tensor: Tensor) -> int:
    """Return how often somebody wrote into a tensor, or into a view of it.

    >>> import torch
    >>> write_count(torch.zeros(2).add_(1))
    1
    """
    return tensor._version
