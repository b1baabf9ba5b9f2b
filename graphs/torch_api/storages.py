"""What tells one storage from another, and whether somebody wrote into it."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor


def storage_key(tensor: Tensor) -> int:
    """Return a number that only tensors on the same storage have, fakes and views included.

    Those that a transform of ``torch.func`` hands out have that of what they stand for. It may be
    given again once the storage is gone.

    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> storage_key(x) == storage_key(x.t()), storage_key(x) == storage_key(x.clone())
    (True, False)
    """
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return int(tensor.untyped_storage()._cdata)


def write_count(tensor: Tensor) -> int:
    """Return how often somebody wrote into a tensor, or into a view of it.

    >>> import torch
    >>> write_count(torch.zeros(2).add_(1))
    1
    """
    return tensor._version
