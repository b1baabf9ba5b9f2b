"""Which nodes a kernel computes on its way: from what it makes back to what is in memory.

And whose memory it writes into, if it adds to what another made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, fx

from planner.graphs.capture.node_kinds import added_to, is_view, layout_of
from planner.graphs.torch_api.operators import views_its_operand


def written_by(node: fx.Node) -> fx.Node | None:
    """Return the node whose result another writes into, if that was made in the step.

    Args:
        node: that may write.
    """
    written = added_to(node)
    while written is not None and written.op == "call_function" and is_view(written):
        written = written.all_input_nodes[0]
    return written if written is not None and written.op == "call_function" else None


def unchanged(node: fx.Node) -> fx.Node:
    """Return what a view shows as it is, made in the step; the node itself if it is no such view.

    A compiler takes both for one, and names what it makes after the last: what is read later may
    be either.

    Args:
        node: that may be a view.
    """
    while views_its_operand(node.target):
        base = node.all_input_nodes[0]
        seen, shown = base.meta.get("val"), node.meta.get("val")
        if not (isinstance(seen, Tensor) and isinstance(shown, Tensor)):
            break
        if base.op != "call_function" or layout_of(seen) != layout_of(shown):
            break
        node = base
    return node


def behind(
    nodes: Iterable[fx.Node], stored: Collection[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the nodes that are computed in order to make some, and those read from memory.

    Args:
        nodes: what is made.
        stored: whose values are in memory; placeholders are, too.

    Returns:
        Both without ``nodes``; what is read in the order in which it is found.
    """
    wanted = set(nodes)
    inside: dict[fx.Node, None] = {}
    read: dict[fx.Node, None] = {}
    ahead = [a for n in wanted for a in n.all_input_nodes]
    while ahead:
        node = ahead.pop()
        if node in wanted or node in inside or node in read:
            continue
        if node.op == "placeholder" or node in stored:
            read[node] = None
        else:
            inside[node] = None
            ahead.extend(node.all_input_nodes)
    return list(inside), list(read)
