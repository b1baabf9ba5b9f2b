"""Operators that communicate over a process group: which they are, and over which ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from planner.graphs.torch_api.operators import OpOverload, said
from planner.graphs.torch_api.patches import Patches

_TRACED = frozenset(("_c10d_functional", "_dtensor"))
_UNTRACED = frozenset(("c10d", "_c10d_functional_autograd", "symm_mem"))
_AT_ONCE = (
    "torch.distributed.{} is called with async_op=True, and a plan cannot wait for the handle that "
    "it returns: leave async_op out"
)
_TO_ONE = (
    "torch.distributed.{} is between two ranks (pipelines and context parallelism use it), which "
    "is no operator that a plan can run: plan the part of the model between sending and receiving"
)
_BETWEEN_TWO = ("send", "recv", "isend", "irecv", "batch_isend_irecv")
_WAIT = "_c10d_functional::wait_tensor"


def waits(target: object) -> bool:
    """Tell the operator that returns what a collective has made, once it is there.

    >>> import torch
    >>> waits(torch.ops._c10d_functional.wait_tensor.default)
    True
    """
    return isinstance(target, OpOverload) and target._schema.name == _WAIT


def communicates(target: object) -> bool:
    """Tell an operator that a graph has for a collective.

    >>> import torch
    >>> communicates(torch.ops._c10d_functional.all_reduce.default)
    True
    >>> communicates(torch.ops._c10d_functional.wait_tensor.default)
    False
    """
    return isinstance(target, OpOverload) and target.namespace in _TRACED and not waits(target)


def communicates_unseen(target: object) -> bool:
    """Tell an operator whose communication is no part of a graph: an effect of its own."""
    return isinstance(target, OpOverload) and target.namespace in _UNTRACED


def collective_name(target: OpOverload) -> str:
    """Return what a collective is called, without its library.

    >>> import torch
    >>> collective_name(torch.ops._c10d_functional.all_reduce.default)
    'all_reduce'
    """
    return str(target._schema.name).partition("::")[2]


def group_name(target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the name that this process has for the group that a collective is called for.

    Args:
        target: the operator.
        args, kwargs: what it is called with.
    """
    return str(said(target, args, kwargs)["group_name"])


def group_named(name: str) -> Any:
    """Return the process group of a name."""
    from torch.distributed import distributed_c10d

    resolved: Any = distributed_c10d
    return resolved._resolve_process_group(name)


def ranks_of(target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ranks of the group that a collective is called for, in order.

    Args:
        target: the operator.
        args, kwargs: what it is called with.
    """
    import torch.distributed as dist

    return tuple(dist.get_process_group_ranks(group_named(group_name(target, args, kwargs))))


def trace_collectives(patches: Patches) -> None:
    """Let what a model calls of ``torch.distributed`` become operators of the graph.

    In the thread that captures alone, and where the process has groups at all.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed import _functional_collectives as functional

    for name in _BETWEEN_TWO:
        patches.attribute(dist, name, _refused(patches, getattr(dist, name)))
    remaps: dict[Any, Any] = dict(functional.traceable_collective_remaps)
    kind, names = type(dist.ReduceOp.SUM), functional.REDUCE_OP_TO_STR
    for own, traceable in remaps.items():
        name = getattr(own, "__name__", "")
        if getattr(dist, name, None) is own:

            def traced(*args: Any, traceable: Any = traceable, **kwargs: Any) -> Any:
                args = tuple(names[x] if isinstance(x, kind) else x for x in args)
                said = {k: names[x] if isinstance(x, kind) else x for k, x in kwargs.items()}
                return traceable(*args, **said)

            patches.attribute(dist, name, _instead(patches, own, traced))


def _instead(patches: Patches, own: Any, traced: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        if not patches.mine():
            return own(*args, **kwargs)
        if kwargs.get("async_op"):
            raise NotImplementedError(_AT_ONCE.format(own.__name__))
        with torch.no_grad():  # as torch's own, through which gradients pass as they are
            return traced(*args, **kwargs)

    return called


def _refused(patches: Patches, own: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        if patches.mine():
            raise NotImplementedError(_TO_ONE.format(own.__name__))
        return own(*args, **kwargs)

    return called
