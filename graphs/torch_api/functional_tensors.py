"""The wrapper that AOTAutograd puts around a tensor while it traces."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from planner.graphs.torch_api.patches import Patches


def let_lists_be_asked_for(patches: Patches) -> None:
    """Let ``tolist`` be seen by a ``TorchFunctionMode``; the wrapper's own goes past it."""
    patches.attribute(FunctionalTensor, "tolist", Tensor.tolist)
