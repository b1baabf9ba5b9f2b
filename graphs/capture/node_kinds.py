"""What a node of a joint graph is: a kernel or a view, random or not, and what it returns.

Knows torch.fx nodes, one at a time. Knows nothing of storages' sizes, of costs or of ops.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.collective_ops import waits
from planner.graphs.torch_api.fake_tensors import FakeTensor
from planner.graphs.torch_api.fx_graphs import printed_target
from planner.graphs.torch_api.operators import (
    OpOverload,
    draws,
    overwritten,
    views_its_operand,
)
from planner.graphs.torch_api.storages import storage_key

RECURRENT = torch.ops.aten.mkldnn_rnn_layer.default
BATCH_NORM_OF_CUDA = torch.ops.aten._batch_norm_with_update_functional.default
BATCH_NORM = torch.ops.aten._native_batch_norm_legit_functional.default


def layout_of(tensor: torch.Tensor) -> str:
    """Return what two tensors share that lie alike.

    Args:
        tensor: real or fake.

    >>> layout_of(torch.zeros(2, 3))
    '(2, 3) (3, 1) torch.float32 cpu'
    """
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"


def target_name(node: fx.Node) -> str:
    """Return the operator's name, such as ``aten.addmm.default``."""
    target = node.target
    return str(target) if isinstance(target, OpOverload) else printed_target(node)


def storages(node: fx.Node) -> set[int]:
    """Return the addresses of the storages that a node's tensors live in."""
    return {storage_key(t) for t in tensors_in(node.meta.get("val"))}


def is_view(node: fx.Node) -> bool:
    """Tell a node that only renames storages from a kernel."""
    if node.target is operator.getitem:
        return True
    if added_to(node) is not None:
        return False
    mine = storages(node)
    theirs = set[int]().union(*map(storages, node.all_input_nodes))
    return bool(mine) and mine <= theirs


def added_to(node: fx.Node) -> fx.Node | None:
    """Return the operand that a kernel writes into, ``None`` for one that makes what it returns.

    Captured graphs have none that write: those that do were put there by a rewrite, which adds to
    a sum where it lies. What such a kernel returns is that sum, after this addition.
    """
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    operand = next(overwritten(node.target, node.args), None)
    return operand if isinstance(operand, fx.Node) else None


def drop_idle_waits(graph: fx.Graph) -> None:
    """Erase the waiting for collectives whose result nobody reads, and with it those.

    On every rank they are the same ones. Waiting is an effect to torch, so that its own removal of
    dead code leaves it.
    """
    for node in reversed(graph.nodes):
        if waits(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def tie_shared_storage(graph: fx.Graph) -> None:
    """Let views of tensors that Python holds, and what waits for a collective, share storage.

    As they do when they run: each use of such a tensor was made fake by itself while it was traced,
    and the fake of waiting makes a tensor where the true one returns what it is given.
    """
    held = ((node, node.meta.get("val")) for node in graph.find_nodes(op="get_attr"))
    tied = {node: value.fake_mode for node, value in held if isinstance(value, FakeTensor)}
    for node in graph.nodes:
        if waits(node.target):
            node.meta["val"] = node.args[0].meta["val"]
            tied[node] = node.meta["val"].fake_mode
            continue
        mode = next((tied[n] for n in node.all_input_nodes if n in tied), None)
        views = node.target is operator.getitem or views_its_operand(node.target)
        if mode is not None and node.op == "call_function" and views:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with mode:
                node.meta["val"] = node.target(*args, **kwargs)
            tied[node] = mode


def is_scalar(node: fx.Node) -> bool:
    """Tell a node that computes a plain number, which is made anew wherever it is needed."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)


def is_random(node: fx.Node) -> bool:
    """Tell a kernel that draws from the generator."""
    return draws(node.target, node.args, node.kwargs)


def new_statistics(node: fx.Node) -> tuple[int, ...]:
    """Return which results of batch norm in train mode are new running statistics.

    Its others do not depend on the running statistics that it is given. Of other nodes none are.
    """
    if node.target is BATCH_NORM and node.args[5] is True:
        return 3, 4
    return (4, 5) if node.target is BATCH_NORM_OF_CUDA else ()
