"""AOTAutograd's export of forward and backward as one graph, and how it names what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, fx, nn

from planner.graphs.torch_api.versions import newer

descriptors = newer("torch._functorch._aot_autograd.descriptors")
"""What placeholders and outputs are: a parameter, an input, a gradient."""

_export = newer("torch._functorch.aot_autograd:aot_export_joint_with_descriptors")


def export_joint(stack: ExitStack, module: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Trace forward and backward of a module; placeholders and outputs carry ``meta["desc"]``.

    Backward is traced without autocast, as it runs in eager mode after the block is left.

    Args:
        stack: what torch sets up for the trace is left when this stack is.
        module: its parameters and buffers become placeholders.
        inputs: what it is called with, fake.
    """
    with torch._functorch.config.patch(backward_pass_autocast="off"):
        module_of_graph: fx.GraphModule = _export(stack, module, tuple(inputs)).graph_module
    return module_of_graph
