"""What a ``DTensor`` holds itself."""

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
