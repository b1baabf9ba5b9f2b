"""When backward gives a parameter's gradient to autograd before all of them are made.

It matters where gradients of earlier micro-steps are held: autograd adds the fresh ones to them,
and those then die. Knows in which order kernels read and make gradients. Knows nothing of costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.storages import storage_key

PARTS = 16
"""About how many times a backward pass hands over; each is a node of autograd's graph."""


def early_hand_overs(joint: Joint, backward: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return after which kernels gradients are handed over, and which.

    A gradient is ready when no later kernel reads it. Those left at the end are not listed.

    Args:
        joint: the captured step.
        backward: its kernels of the backward pass, in order.
    """
    last: dict[int, fx.Node] = {}
    for node in backward:
        for touched in (node, *node.all_input_nodes):
            for tensor in tensors_in(touched.meta.get("val")):
                last[storage_key(tensor)] = node
    size = {g: _bytes(g) for g in joint.gradients[: len(joint.parameters)] if g is not None}
    ready: dict[fx.Node, list[fx.Node]] = {}
    for gradient in size:
        if (key := storage_key(gradient.meta["val"])) in last:
            ready.setdefault(last[key], []).append(gradient)
    found: dict[fx.Node, list[fx.Node]] = {}
    waiting: list[fx.Node] = []
    for node in backward:
        waiting += ready.get(node, ())
        if sum(map(size.__getitem__, waiting)) * PARTS >= sum(size.values()) > 0:
            found[node], waiting = waiting, []
    return found


def _bytes(node: fx.Node) -> int:
    return int(node.meta["val"].untyped_storage().nbytes())
