"""Where a node of a graph that Dynamo traced comes from: the module, and the user's line."""

from __future__ import annotations

import re

from torch import fx

_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def module_of(node: fx.Node) -> str:
    """Return the path of the submodule that a node came from, backward nodes included."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    # Dynamo writes the way to a module as code: L['model']._modules['a'].b
    found = re.sub(r"\._modules\['([^']+)'\]|\['([^']+)'\]", r".\1\2", path)
    return re.sub(r"^L\.(\w+)\.?", "", found)


def source_of(node: fx.Node) -> str:
    """Return the user's ``file:line`` that a node came from, backward nodes included."""
    lines = _LINE.findall(node.meta.get("stack_trace") or "")
    return ":".join(lines[-1]) if lines else ""


def forward_modules(graph: fx.Graph) -> dict[str, str]:
    """Return the path of the submodule that each node of the forward pass came from, by name.

    Args:
        graph: of forward and backward.
    """
    found = (n for n in graph.nodes if n.meta.get("nn_module_stack"))
    return {n.name: path for n in found if (path := module_of(n))}
