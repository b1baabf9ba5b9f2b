"""What a torch.fx graph offers to those who write one, and its public methods do not."""

from __future__ import annotations

from torch import fx

from planner.graphs.torch_api.versions import newer

_BoxedCodeGen = newer("torch.fx.graph:_BoxedCodeGen")


def before_all(graph: fx.Graph) -> fx.Node:
    """Return the node that all others follow."""
    return graph._root


def take_arguments_in_a_list(graph: fx.Graph) -> None:
    """Let the code of a graph take one list and empty it, so that arguments die where they can."""
    graph.set_codegen(_BoxedCodeGen())


def printed_target(node: fx.Node) -> str:
    """Return what a node calls as torch.fx prints it."""
    return str(node._pretty_print_target(node.target))
