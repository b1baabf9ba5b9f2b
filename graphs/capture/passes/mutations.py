"""What a step writes into forbids: kernels that may not run twice, and when buffers are written.

Knows the joint graph and the statistics of batch norm. Knows nothing of values, costs or ops.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import (
    added_to,
    is_view,
    new_statistics,
    storages,
)
from planner.graphs.capture_error import CaptureError


def once_only(joint: Joint) -> set[fx.Node]:
    """Return the kernels that may not run again: they read a buffer that the step changes, or add
    to a sum where it lies, or make what is added to.

    Batch norm in train mode is exempt, unless the model itself reads the new statistics: run again,
    it computes them from newer ones, but its output and its gradient do not depend on them.
    """
    changed = {joint.buffers[name] for name in joint.mutations}
    tainted = _made_of_parts(joint)
    stale = set(changed)
    for node in joint.graph.nodes:
        if node.op != "call_function" or not stale.intersection(node.all_input_nodes):
            continue
        if is_view(node):
            stale.add(node)
        elif new_statistics(node) and _statistics_unread(node):
            stale.update(_read_statistics(node))
        else:
            tainted.add(node)
    return tainted


def _made_of_parts(joint: Joint) -> set[fx.Node]:
    """Return the kernels that make or write into a storage which others of them write into."""
    summed = set[int]()
    for node in joint.graph.nodes:
        if added_to(node) is not None:
            summed |= storages(node)
    kernels = (n for n in joint.graph.nodes if n.op == "call_function" and not is_view(n))
    return {n for n in kernels if summed & storages(n)} if summed else set()


def _read_statistics(batch_norm: fx.Node) -> list[fx.Node]:
    parts = [u for u in batch_norm.users if u.target is operator.getitem]
    return [u for u in parts if u.args[1] in new_statistics(batch_norm)]


def _statistics_unread(batch_norm: fx.Node) -> bool:
    readers = (r for part in _read_statistics(batch_norm) for r in _readers(part))
    return all(new_statistics(r) for r in readers if not is_view(r))


def update_points(joint: Joint, border: int) -> dict[fx.Node, list[str]]:
    """Return after which forward kernel each changed buffer can be overwritten.

    That is where its new value exists and no forward kernel still reads the old one.

    Raises:
        CaptureError: the backward pass reads the old value, as eager mode would refuse, too.
    """
    position = {n: i for i, n in enumerate(joint.graph.nodes)}
    points: dict[fx.Node, list[str]] = {}
    for name, made in joint.mutations.items():
        readers = [made, *_readers(joint.buffers[name])]
        if any(position[n] >= border for n in readers if n not in joint.rewired):
            raise CaptureError(
                f"the backward pass needs the value of buffer {name!r} from before the forward "
                "pass changed it; change a copy of it instead"
            )
        last = max((n for n in readers if position[n] < border), key=position.__getitem__)
        points.setdefault(last, []).append(name)
    return points


def _readers(node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        if user.op == "call_function":
            yield user
            if is_view(user):
                yield from _readers(user)
