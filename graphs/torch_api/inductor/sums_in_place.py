"""Products added into a sum where it lies: how Inductor is to lower the operator that does so.

Traced graphs have none; Inductor would take it for one that it does not know, and want what it is
handed contiguous in one half of a step, that is copied, and as it lies in the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import lowering

from planner.graphs.torch_api.patches import Patches

ADDED: Any = torch.ops.aten.addmm_.default


def lower_sums(patches: Patches) -> None:
    """Let Inductor call the operator with its operands as they lie.

    Args:
        patches: that undo it.
    """
    called = lowering.fallback_handler(ADDED, add_to_fallback_set=False)  # type: ignore[no-untyped-call]
    patches.entry(lowering.lowerings, ADDED, called)
    as_it_lies = lowering.constrain_to_fx_strides
    patches.entry(lowering._maybe_layout_constraints, ADDED, as_it_lies)
