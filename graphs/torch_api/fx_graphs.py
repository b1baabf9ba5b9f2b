"""What a torch.fx graph offers to those who write one, and its public methods do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import fx

from planner.graphs.torch_api.versions import newer

_BoxedCodeGen = newer("torch.fx.graph:_BoxedCodeGen")


def before_all(graph: fx.Graph) -> fx.Node:
    """Return the node that all others follow."""
    return graph._root


def take_arguments_in_a_list(graph: fx.Graph) -> None:
    """Let the code of a graph take one list and empty it, so that arguments die where they can."""
    graph.set_codegen(_BoxedCodeGen())


def yield_where(graph: fx.Graph, mark: Callable[[Any], None]) -> None:
    """Let the code of a graph be a generator that yields what it would call a function with.

    Args:
        graph: whose code is not yet generated.
        mark: a function of one argument at the top of a module.
    """
    called = re.compile(rf"= \w*_{mark.__name__}\(")
    graph.on_generate_code(lambda _: lambda body: [called.sub("= yield (", line) for line in body])


def printed_target(node: fx.Node) -> str:
    """Return what a node calls as torch.fx prints it."""
    return str(node._pretty_print_target(node.target))
