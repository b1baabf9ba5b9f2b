"""Find kernels that may write into the storage of an operand that dies with them.

A pointwise kernel whose operand nobody else reads can take that operand's storage for its result:
same bits, one tensor less at the step where losses and attention often peak, fewer fresh pages. The
producer and such a kernel, when they are neighbours, become one op of the graph, so that schedules,
solvers and ``simulate`` need not know. Knows torch.fx nodes and operator schemas only.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planner.graphs.capture.node_kinds import is_view, storages
from planner.graphs.torch_api.operators import OpOverload, argument_place, out_variant
from planner.graphs.torch_api.storages import storage_key

aten = torch.ops.aten

# Not pointwise, but a row is summed up before any of it is written, and then element by element:
# on a CPU, and on CUDA, where a block has a row (tested for equality; at/src/ATen/native/cuda/
# SoftMax.cu).
ROW_WISE = frozenset(
    {
        aten._softmax.default,
        aten._log_softmax.default,
        aten._softmax_backward_data.default,
        aten._log_softmax_backward_data.default,
    }
)


@dataclass(frozen=True)
class Overwrite:
    """Run a node as ``target``, its overload that writes, into the storage of ``operand``."""

    target: Callable[..., Any]
    keyword: str
    operand: fx.Node


class Readers:
    """Who reads each storage, views looked through."""

    def __init__(self, graph: fx.Graph) -> None:
        self._readers: defaultdict[int, set[fx.Node]] = defaultdict(set)
        self._given: set[int] = set()  # not made by the step: its arguments, Python's constants
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._given |= storages(node)
            if node.op in ("call_function", "output") and not (
                node.op == "call_function" and is_view(node)
            ):
                for operand in node.all_input_nodes:
                    for storage in storages(operand):
                        self._readers[storage].add(node)

    def of(self, storage: int) -> frozenset[fx.Node]:
        """Return the nodes that read a storage, the graph's output among them."""
        return frozenset(self._readers[storage])

    def is_given(self, storage: int) -> bool:
        """Tell whether a storage is not made by the step."""
        return storage in self._given

    def overwrite(self, node: fx.Node) -> Overwrite | None:
        """Return how a node can write into one of its operands, if it can."""
        target, made = node.target, node.meta.get("val")
        if not isinstance(target, OpOverload) or not isinstance(made, Tensor):
            return None
        if not _index_by_index(node) or (variant := out_variant(target)) is None:
            return None
        for operand in dict.fromkeys(_direct(node)):
            if self._may_take(node, operand, made):
                return Overwrite(*variant, operand)
        return None

    def _may_take(self, node: fx.Node, operand: fx.Node, made: Tensor) -> bool:
        """Tell whether nobody else reads the operand and the result fits it exactly."""
        old = operand.meta.get("val")
        if operand.op != "call_function" or not isinstance(old, Tensor):
            return False
        same = (old.shape, old.stride(), old.dtype, old.device) == (
            made.shape,
            made.stride(),
            made.dtype,
            made.device,
        )
        storage = old.untyped_storage()
        whole = storage.nbytes() == old.numel() * old.element_size() > 0
        key = storage_key(old)
        alone = self._readers[key] == {node} and key not in self._given
        others = [n for n in node.all_input_nodes if n is not operand]
        apart = all(key not in storages(n) for n in others)
        beside = (n.meta.get("val") for n in _direct(node))
        return same and whole and alone and apart and _lies_as(old, beside)


def written_over(
    kernel: Callable[..., Tensor],
    writing: Callable[..., Tensor],
    keyword: str,
    operand: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Run a kernel into the storage of an operand, if its result would lie as the operand does.

    A fake operand may lie otherwise than the real one, and how a result lies decides which kernels
    later ops take, and so their bits.

    Args:
        kernel: makes a tensor of its own.
        writing: its overload that writes.
        keyword: of the tensor that is written.
        operand: to write into.
        args, kwargs: of the kernel.
    """
    if _known_to_lie([operand, *(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))]):
        return writing(*args, **kwargs, **{keyword: operand})
    return kernel(*args, **kwargs)


def _known_to_lie(tensors: Sequence[Tensor]) -> bool:
    """Tell what ``_lies_as`` does of the first and the others; a step asks hundreds of times."""
    layouts = tuple([(x.shape, x.stride()) for x in tensors])
    try:
        known = _LIES.get(layouts)
    except TypeError:  # sizes are symbols
        return _lies_as(tensors[0], tensors[1:])
    if known is None:
        if len(_LIES) >= _MOST_LAYOUTS:
            _LIES.clear()
        known = _LIES[layouts] = _lies_as(tensors[0], tensors[1:])
    return known


_LIES: dict[tuple[Any, ...], bool] = {}
_MOST_LAYOUTS = 4096


def _lies_as(operand: Tensor, arguments: Iterable[Any]) -> bool:
    """Tell whether a pointwise kernel gives its result of some arguments as an operand lies."""
    tensors = (x for x in arguments if isinstance(x, Tensor))
    return _is_regular(operand) and all(_leads_to(operand, x) for x in tensors)


def _is_regular(x: Tensor) -> bool:
    """Tell strides as a pointwise kernel gives its result where sizes of 1 leave them open."""
    if not x.is_contiguous():
        return True
    step = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != step:
            return False
        step *= size
    return True


def _leads_to(operand: Tensor, x: Tensor) -> bool:
    """Tell an argument by which the result of a pointwise kernel lies as an operand does.

    Two dimensions lie in the order of the first argument that is broadcast along neither (at/src/
    ATen/TensorIterator.cpp, ``reorder_dimensions``), so one whose steps descend as an operand's do.
    """
    if x.shape == operand.shape:
        steps = [s for size, s in zip(x.shape, x.stride(), strict=True) if size > 1 and s]
        descends = all(a > b for a, b in itertools.pairwise(steps))
        return x.stride() == operand.stride() or (operand.is_contiguous() and descends)
    spread = sum(size > 1 for size in x.shape)
    return spread <= 1 or (x.is_contiguous() and operand.is_contiguous())


def _index_by_index(node: fx.Node) -> bool:
    """Tell whether element ``i`` of the result needs no element but ``i`` of the operands."""
    target = node.target
    assert isinstance(target, OpOverload)
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    if torch.Tag.pointwise in target.tags:
        return True
    if target not in ROW_WISE:
        return False
    made = node.meta["val"]
    dimension = node.args[argument_place(target, "dim")]
    known = bool(made.device.type in {"cpu", "cuda"} and made.is_contiguous())
    return known and dimension in (made.dim() - 1, -1)


def writes_pointwise(node: fx.Node) -> bool:
    """Tell a pointwise kernel that has an overload which writes its result somewhere."""
    target = node.target
    pointwise = isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags
    return pointwise and _index_by_index(node) and out_variant(target) is not None


def _direct(node: fx.Node) -> Iterable[fx.Node]:
    """Yield the operands that are arguments of their own, not elements of a list."""
    return (a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node))
