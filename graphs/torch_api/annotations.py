"""Notes that a trace puts on the nodes it makes, backward nodes included."""

from typing import Any

from torch import fx
from torch.fx.traceback import preserve_node_meta

from planner.graphs.torch_api.versions import newer

__all__ = ["IN_LOSS", "IN_PLACE", "annotate", "note", "noted", "preserve_node_meta"]

IN_LOSS = "in_loss"
"""Is put on what the loss of a person computes, beside the model."""
IN_PLACE = "in_place"
"""Is put on what a call computes that writes into its first argument."""
annotate = newer("torch.fx.traceback:annotate")


def noted(node: fx.Node, name: str) -> Any:
    """Return what was put on a node under a name; ``None`` if nothing was.

    >>> noted(fx.Graph().placeholder("x"), IN_LOSS) is None
    True
    """
    return (node.meta.get("custom") or {}).get(name)


def note(node: fx.Node, name: str, value: object) -> None:
    """Put something on a node under a name, beside what is there.

    Args:
        node: of a graph.
        name, value: the name, and what is put there.

    >>> node = fx.Graph().placeholder("x")
    >>> note(node, IN_LOSS, True)
    >>> noted(node, IN_LOSS)
    True
    """
    node.meta["custom"] = {**(node.meta.get("custom") or {}), name: value}
