"""Whether two captured steps are one computation: the same calls on the same places, node by node.

Two layers may read something that differs, such as their number, and compute the same. Knows
nothing of what was read.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor, fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import layout_of
from planner.graphs.capture.training_step import Traced


def computation(traced: Traced) -> Hashable | None:
    """Return what is equal for two captures of one computation, whatever else they read.

    Constants of the graph count. ``None`` stands for what cannot be compared: constants that are
    tensors or graphs of their own, and what the step leaves in Python's state.

    Args:
        traced: a captured step.

    >>> import torch
    >>> from torch import nn
    >>> from planner.graphs.capture.call_arguments import arguments_of
    >>> from planner.graphs.capture.training_step import capture_joint
    >>> def told(unit):
    ...     call = arguments_of(torch.zeros(2, 4, requires_grad=True))
    ...     return computation(capture_joint(unit, call, device="cpu"))
    >>> told(nn.Linear(4, 4)) == told(nn.Linear(4, 4)), told(nn.ReLU()) == told(nn.Tanh())
    (True, False)
    """
    joint, captured, returned = traced.joint, traced.captured, traced.joint.outputs
    tensors = any(True for _ in joint.graph.find_nodes(op="get_attr"))
    if tensors or returned.effects.items or returned.checks or returned.late:
        return None
    signature = json.dumps(captured.signature, sort_keys=True)
    return captured.graph, captured.eager, signature, _calls(joint.graph), _roles(joint)


def _calls(graph: fx.Graph) -> tuple[Hashable, ...]:
    """Return every node by what it calls, on which nodes and constants, and what comes of it."""
    place = {node: f"%{i}" for i, node in enumerate(graph.nodes)}

    def written(node: fx.Node) -> Hashable:
        target = "" if node.op == "placeholder" else str(node.target)
        args = fx.node.map_arg((node.args, node.kwargs), place.__getitem__)
        return node.op, target, repr(args), _shapes(node.meta.get("val"))

    return tuple(map(written, graph.nodes))


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return layout_of(value)
    if isinstance(value, list | tuple):
        return repr(list(map(_shapes, value)))
    return type(value).__name__


def _roles(joint: Joint) -> tuple[Hashable, ...]:
    """Return which node is what, and what a call returns."""
    place = {node: i for i, node in enumerate(joint.graph.nodes)}
    returned = joint.outputs

    def at(nodes: Iterable[fx.Node | None]) -> tuple[int | None, ...]:
        return tuple(None if n is None else place[n] for n in nodes)

    named = (joint.parameters, joint.buffers, joint.tangents, joint.mutations)
    listed = (joint.inputs, joint.forward_outputs, joint.gradients, joint.lifted)
    return (
        tuple((tuple(nodes), at(nodes.values())) for nodes in named),
        tuple(map(at, listed)),
        frozenset(at(joint.rewired)),
        repr((returned.spec, returned.slots, returned.constants, returned.names)),
        (returned.differentiable, returned.refused, repr(joint.decisions.answers)),
    )
