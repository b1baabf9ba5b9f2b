"""Writing calls into a joint graph, with what they make noted without data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from planner.graphs.capture.chunks.token_dims import value
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import added_to, is_view
from planner.graphs.capture.rewrites import Declined


def call(
    graph: fx.Graph,
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    like: fx.Node,
) -> fx.Node:
    """Write a call where the graph is inserting, its place in the model that of another node.

    Args:
        graph: that is written.
        target, args, kwargs: the call.
        like: the node that it is for.
    """
    node = graph.call_function(target, tuple(args), dict(kwargs or {}))
    node.meta = {k: v for k, v in like.meta.items() if k not in ("val", "tensor_meta")}
    written = added_to(node)
    if written is not None:
        node.meta["val"] = value(written)
    else:
        renew(node, like)
    return node


def renew(node: fx.Node, like: fx.Node | None = None) -> None:
    """Note anew what a node makes.

    Args:
        node: whose operands have changed.
        like: a node that has a tensor without data, by default itself.

    Raises:
        Declined: its operator does not take them.
    """
    known = value(like or node)
    given, named = fx.node.map_arg((node.args, node.kwargs), value)
    mode = (known[0] if isinstance(known, tuple | list) else known).fake_mode
    try:
        with mode:
            node.meta["val"] = node.target(*given, **named)  # type: ignore[operator]
    except RuntimeError as error:  # a view that strides do not allow, a shape that is in the way
        reason = str(error).partition("\n")[0]
        raise Declined(f"{node.target} does not take a part of its operands: {reason}") from error


def views_in(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that are views, which is to be asked before anything is replaced."""
    return {n for n in graph.nodes if n.op == "call_function" and is_view(n)}


def renew_views(graph: fx.Graph, changed: Iterable[fx.Node], views: set[fx.Node]) -> None:
    """Let views of what was replaced share the storage of what it became.

    Args:
        graph: that was changed.
        changed: what took the place of others.
        views: the nodes that were views before.
    """
    touched = set(changed)
    for node in graph.nodes:
        if node in views and touched.intersection(node.all_input_nodes):
            renew(node)
            touched.add(node)


def with_results(joint: Joint, became: Mapping[fx.Node, fx.Node]) -> Joint:
    """Return a step with what became of its results.

    Args:
        joint: whose graph was changed.
        became: for nodes that were replaced, by what.
    """

    def now(node: fx.Node) -> fx.Node:
        return became.get(node, node)

    return replace(
        joint,
        forward_outputs=tuple(map(now, joint.forward_outputs)),
        mutations={name: now(node) for name, node in joint.mutations.items()},
        gradients=tuple(None if n is None else now(n) for n in joint.gradients),
    )


def sweep(graph: fx.Graph, used: set[fx.Node], before: Iterable[fx.Node]) -> None:
    """Erase what nobody reads any more.

    Args:
        graph: that was changed.
        used: the nodes that somebody read before.
        before: all nodes there were.
    """
    old = set(before)
    for node in reversed(list(graph.nodes)):
        left = node in used or node not in old
        if left and node.op == "call_function" and not node.users:
            graph.erase_node(node)
