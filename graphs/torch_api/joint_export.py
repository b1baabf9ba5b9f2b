"""AOTAutograd's export of forward and backward as one graph, and how it names what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import Tensor, fx, nn
from torch._functorch._aot_autograd import descriptors
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors

__all__ = ["descriptors", "export_joint"]


def export_joint(stack: ExitStack, module: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Trace forward and backward of a module; placeholders and outputs carry ``meta["desc"]``.

    Args:
        stack: what torch sets up for the trace is left when this stack is.
        module: its parameters and buffers become placeholders.
        inputs: what it is called with, fake.
    """
    return aot_export_joint_with_descriptors(stack, module, tuple(inputs)).graph_module
