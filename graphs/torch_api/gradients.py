"""What happens to a parameter when its gradient arrives."""

from __future__ import annotations

from torch import Tensor


def acts_on_arrival(tensor: Tensor) -> bool:
    """Tell whether somebody's hook runs as soon as the tensor's gradient is accumulated.

    >>> import torch
    >>> acts_on_arrival(torch.zeros(2, requires_grad=True))
    False
    """
    return bool(tensor._post_accumulate_grad_hooks)
