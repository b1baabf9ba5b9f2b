"""Rewrite a joint graph so that executing it node by node does exactly what eager mode does.

Knows five differences between AOTAutograd's functional graph and a real step: the backward pass
may read an updated buffer, batch norm's is handed statistics it does not look at, a gradient may
not have its parameter's layout, two parameters may be handed the same gradient tensor, and the LSTM
of oneDNN returns one gradient twice. Each becomes explicit, so that its memory is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx

from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.ops import keep_layout_of_noise
from planner.graphs.torch_api.storages import storage_key

_BATCH_NORM_BACKWARDS = (
    torch.ops.aten.native_batch_norm_backward.default,
    torch.ops.aten.batch_norm_backward.default,
)
_RECURRENT_BACKWARD = torch.ops.aten.mkldnn_rnn_layer_backward.default


def with_layout_of(gradient: Tensor, size: Iterable[int], stride: Iterable[int]) -> Tensor:
    """Return a copy of a gradient in another layout, as ``AccumulateGrad`` would make.

    Args:
        gradient: as backward made it.
        size: of the parameter, in elements.
        stride: of its gradient, in elements.
    """
    fresh = torch.empty_strided(
        tuple(size), tuple(stride), dtype=gradient.dtype, device=gradient.device
    )
    return fresh.copy_(gradient)


def normalized(joint: Joint) -> Joint:
    """Return the joint graph with the differences made explicit (rewritten in place)."""
    _drop_twins(joint)
    _drop_statistics(joint)
    keep_layout_of_noise(joint.graph)
    first = first_backward(joint)
    order = {node: i for i, node in enumerate(joint.graph.nodes)}
    rewired: set[fx.Node] = set()
    for name, node in joint.mutations.items():
        buffer = joint.buffers[name]
        for user in list(node.users):
            # forward wrote the new value into the buffer, so backward can read it there
            if user.op == "call_function" and order[user] >= first:
                user.replace_input_with(node, buffer)
                rewired.add(user)
    gradients = _own_gradients(joint)
    joint.graph.lint()
    return replace(joint, gradients=gradients, rewired=frozenset(rewired))


def first_backward(joint: Joint) -> int:
    """Return the position of the first node that depends on a tangent."""
    tainted = set(joint.tangents.values())
    for position, node in enumerate(joint.graph.nodes):
        if node.op == "call_function" and tainted.intersection(node.all_input_nodes):
            return position
    return len(joint.graph.nodes)


def _drop_twins(joint: Joint) -> None:
    """Let both biases of a recurrent layer take the first of the two equal gradients it returns.

    A fake of the kernel returns one tensor twice, or two, as its cache has it. Taken so, the second
    dies at once, and the copy that the second bias needs is explicit.
    """
    for node in joint.graph.find_nodes(op="call_function", target=_RECURRENT_BACKWARD):
        made = list(node.meta["val"])
        made[4] = made[3]
        node.meta["val"] = tuple(made)
        for user in list(node.users):
            if user.args[1] == 4:
                user.args = (node, 3)
                user.meta["val"] = made[3]


def _drop_statistics(joint: Joint) -> None:
    """Hand the gradient of batch norm in train mode no running statistics, which it ignores.

    It would read buffers that another forward pass may have changed meanwhile.
    """
    for target in _BATCH_NORM_BACKWARDS:
        for node in joint.graph.find_nodes(op="call_function", target=target):
            before, training, after = node.args[:3], node.args[7], node.args[5:]
            if training is True:
                node.args = (*before, None, None, *after)


def _own_gradients(joint: Joint) -> tuple[fx.Node | None, ...]:
    """Give every gradient a dense tensor of its own.

    Raises:
        CaptureError: a gradient is sparse.
    """
    output = joint.graph.output_node()
    taken: set[int] = {_storage(n) for n in joint.forward_outputs}
    taken |= {_storage(n) for n in joint.graph.find_nodes(op="placeholder")}
    gradients: list[fx.Node | None] = []
    for name, node in zip(joint.parameters, joint.gradients, strict=False):
        if node is not None and node.meta["val"].layout is not torch.strided:
            raise CaptureError(
                f"the gradient of parameter {name!r} is sparse, and a plan can only hold dense "
                "ones; make the embedding with sparse=False"
            )
    for owner, node in joint.gradient_of.items():
        if node is None or (_fits(owner, node) and _storage(node) not in taken):
            gradients.append(node)
        else:
            with joint.graph.inserting_before(output):
                gradients.append(_copy(joint.graph, owner, node))
        if node is not None:
            taken.add(_storage(node))
    return tuple(gradients)


def _storage(node: fx.Node) -> int:
    return storage_key(node.meta["val"])


def _fits(owner: fx.Node, node: fx.Node) -> bool:
    found = node.meta["val"]
    whole = found.untyped_storage().nbytes() == found.numel() * found.element_size()
    return bool(whole and _stride_of_gradient(owner.meta["val"]) == found.stride())


def _stride_of_gradient(owner: Tensor) -> tuple[int, ...]:
    """Return how ``AccumulateGrad`` lays out the gradient of a tensor (``accumulate_grad.h``).

    That is as the tensor itself, unless elements of it are one in memory or have others between
    them: then row by row.

    >>> x = torch.zeros(2, 3)
    >>> [_stride_of_gradient(of) for of in (x.T, x[:, :2], x[0].expand(2, 3))]
    [(1, 3), (2, 1), (3, 1)]
    """
    dense = torch.empty_like(owner, memory_format=torch.preserve_format)
    if dense.stride() == owner.stride():
        return tuple(owner.stride())
    return tuple(torch.empty_like(owner, memory_format=torch.contiguous_format).stride())


def _copy(graph: fx.Graph, owner: fx.Node, node: fx.Node) -> fx.Node:
    wanted, found = owner.meta["val"], node.meta["val"]
    size, stride = tuple(wanted.shape), _stride_of_gradient(wanted)
    copy = graph.call_function(with_layout_of, (node, size, stride))
    with found.fake_mode:
        fresh = torch.empty_strided(size, stride, dtype=found.dtype, device=found.device)
    copy.meta = {**node.meta, "val": fresh}
    if node.next is not copy:
        node.append(copy)  # as early as its operand, so that the operand can die
    return copy
