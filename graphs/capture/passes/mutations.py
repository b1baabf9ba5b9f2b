"""What a step writes into forbids: kernels that may not run twice, and when buffers are written.

Knows the joint graph and the statistics of batch norm. Knows nothing of values, costs or ops.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable

from torch import fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.node_kinds import (
    added_to,
    is_view,
    new_statistics,
    storages,
)
from planner.graphs.capture.passes.inplace import Readers, writes_pointwise
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


def written_in_place(joint: Joint, readers: Readers) -> dict[fx.Node, str]:
    """Return the new values of buffers that their kernels may write where the old ones lie.

    As in eager mode: batch norm its statistics, both of them, a pointwise kernel its result. That
    kernel alone reads the buffer, and nobody the new value. The others are copied into theirs.

    Args:
        joint: the step.
        readers: of its graph.
    """
    given = Counter(s for n in joint.graph.find_nodes(op="placeholder") for s in storages(n))
    found: dict[fx.Node, str] = {}
    for name, made in joint.mutations.items():
        buffer, kernel = joint.buffers[name], _kernel_of(made)
        alone = all(given[s] == 1 and readers.of(s) == {kernel} for s in storages(buffer))
        unread = all(user.op == "output" for user in made.users)
        if alone and unread and kernel not in joint.rewired and _writes_over(kernel, made, buffer):
            found[made] = name
    halves = {m for m in found if not found.keys() >= {*_read_statistics(_kernel_of(m))}}
    return {made: name for made, name in found.items() if made not in halves}


def _kernel_of(made: fx.Node) -> fx.Node:
    """Return the kernel that makes a value, one of several or all there is."""
    parent = made.args[0] if made.target is operator.getitem else made
    assert isinstance(parent, fx.Node)
    return parent


def _writes_over(kernel: fx.Node, made: fx.Node, buffer: fx.Node) -> bool:
    """Tell whether a kernel has an overload that writes a value where a buffer lies."""
    if made is not kernel:
        parts = new_statistics(kernel)
        return made.args[1] in parts and buffer is kernel.args[3 + parts.index(made.args[1])]
    old, new = buffer.meta["val"], made.meta["val"]
    alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
    return alike and buffer in kernel.args and writes_pointwise(kernel)


def _readers(node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        if user.op == "call_function":
            yield user
            if is_view(user):
                yield from _readers(user)
