"""What an operator costs in principle: floating-point operations, bytes moved, roofline seconds.

Knows formulas over shapes, so fake tensors suffice. Knows nothing of what a kernel really takes or
of the workspace it uses: that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from planner.graphs.hardware.devices import Device, Kernel
from planner.graphs.torch_api.operators import OpOverload, overwritten, said

aten = torch.ops.aten
_Formula = Callable[[Sequence[Any], Sequence[Tensor]], int]


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one call does: FLOPs (a multiply-add is two), bytes read and written, and in what.

    ``dtype`` is that of the first floating-point operand, "float32" if there is none; ``kernel`` is
    what bounds the call if it is not memory. ``reordered_bytes`` are read and written beside those
    where a convolution's images have to be laid out with channels last.
    """

    flops: int
    moved_bytes: int
    dtype: str
    kernel: Kernel = Kernel.PRODUCT
    reordered_bytes: int = 0


def op_cost(
    target: OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    outputs: Any,
) -> OpCost:
    """Count what a call does from the shapes of what it reads and returns.

    Only products (matrix, convolution, attention, recurrent) count FLOPs: everything else is
    bound by memory on any device. A view does nothing, nor does a question (``prim.device``).

    Args:
        target: the operator.
        args: its positional arguments; of tensors only the shapes are used.
        kwargs: its named arguments.
        outputs: what it returns; tensors of the right shapes.

    >>> x = torch.empty(8, 16, device="meta")
    >>> w = torch.empty(16, 4, device="meta")
    >>> op_cost(aten.mm.default, (x, w), {}, x @ w)
    OpCost(flops=1024, moved_bytes=896, dtype='float32', kernel=<Kernel.PRODUCT: 'product'>, ...)
    """
    # what returns nothing (``_foreach_add_``) makes what it writes to
    made = list(tensors_in(outputs)) or list(tensors_in(list(overwritten(target, args))))
    read = list(tensors_in((args, kwargs)))
    dtype = next((t.dtype for t in (*read, *made) if t.is_floating_point()), torch.float32)
    name = str(dtype).removeprefix("torch.")
    if not made or target.is_view or target.overloadpacket in _MOVE_NOTHING:
        return OpCost(0, 0, name)
    written = sum(map(_extent_bytes, made))
    if target.overloadpacket in _READ_WHAT_THEY_WRITE and read:
        source, *rest = read
        moved = min(written, _extent_bytes(source)) + sum(map(_extent_bytes, rest)) + written
    else:
        moved = sum(map(_extent_bytes, read)) + written
    flops = _flops(target, args, kwargs, outputs, made)
    kernel = _kernel(target.overloadpacket)
    reordered = _reordered_bytes(args, made) if kernel is Kernel.CONVOLUTION else 0
    return OpCost(flops, moved, name, kernel, reordered)


def _reordered_bytes(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Return what laying a convolution's images out anew moves: each is read and written.

    Weights are too small to count, grouped convolutions do not run on tensor cores.
    """
    images = [t for t in (*args, *made) if isinstance(t, Tensor) and t.dim() > 2]
    weight = args[2] if isinstance(args[2], Tensor) and args[2].dim() > 2 else args[1]
    if args[-1] != 1 and args[-2] != 1:
        return 0
    shape = weight.shape
    moved = [t for t in images if t.shape != shape and _is_planar(t)]
    return 2 * sum(map(_extent_bytes, moved))


def _is_planar(image: Tensor) -> bool:
    """Tell whether the channels of a pixel lie apart."""
    return image.shape[1] > 1 and image.stride(1) != 1


def _kernel(packet: Any) -> Kernel:
    if packet in _CONVOLUTIONS:
        return Kernel.CONVOLUTION
    return Kernel.ATTENTION if packet in _ATTENTION else Kernel.PRODUCT


def roofline_seconds(
    cost: OpCost, device: Device, *, tf32: Collection[Kernel] = frozenset()
) -> float:
    """Return the time of a call: the slower of compute and memory, plus the launch.

    Host and device have a clock each, and the host issues ahead, so a step takes what the later of
    both needs. Here every op takes what the slower of both needs for it, which is the same where
    either bounds all along, and above it where they take turns: seconds of ops add up, as solvers
    and their bounds have to have it, and what is run again is issued again. What moves nothing
    takes no time.

    Args:
        cost: what a call does.
        device: what it runs on.
        tf32: the kinds of kernels that round float32 to use tensor cores, where there are any.

    >>> from planner.graphs.hardware.devices import device
    >>> roofline_seconds(OpCost(0, 0, "float32"), device("H200"))
    0.0
    """
    if not cost.flops and not cost.moved_bytes:
        return 0.0
    dtype = "tf32" if cost.kernel in tf32 and cost.dtype == "float32" else cost.dtype
    compute = cost.flops / device.flops_per_second(dtype, cost.kernel)
    seconds = max(compute, cost.moved_bytes / device.bytes_per_second()) + device.launch_seconds
    if dtype in _TENSOR_CORES and dtype in device.peak_flops and device.convolves_channels_last:
        seconds += cost.reordered_bytes / device.bytes_per_second()
    return max(seconds, device.issue_seconds)


_TENSOR_CORES = frozenset({"tf32", "float16", "bfloat16"})


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested lists, tuples and dicts, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, Mapping):
        yield from tensors_in(list(tree.values()))


def _extent_bytes(tensor: Tensor) -> int:
    """Return the bytes of the distinct elements: an expanded dimension is read once."""
    if 0 in tensor.shape:
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, stride in pairs if stride) * tensor.element_size()


def _flops(
    target: OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    outputs: Any,
    made: Sequence[Tensor],
) -> int:
    packet = target.overloadpacket
    if packet in _FORMULAS:
        found = _FORMULAS[packet](args, made)
        # fused kernels of attention leave out what a causal mask hides
        causal = packet in _ATTENTION and said(target, args, kwargs).get("is_causal")
        return found // 2 if causal else found
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=outputs))
    return 0


def _convolution(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Every element of the smaller side meets every weight of its group."""
    image, weight, transposed = args[0], args[1], len(args) > 6 and bool(args[6])
    return int(2 * (image if transposed else made[0]).numel() * math.prod(weight.shape[1:]))


def _mkldnn_convolution(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return int(2 * made[0].numel() * math.prod(args[1].shape[1:]))


def _convolution_backward(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    """Each of the two products, for the image and for the weight, costs what forward did."""
    grad, image, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    forward = 2 * (image if transposed else grad).numel() * math.prod(weight.shape[1:])
    return int(forward * sum(map(bool, wanted[:2])))


def _attention(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    """Two products of queries with keys and values, nothing hidden."""
    query, key, value = args[:3]
    rows = math.prod(query.shape[:-1]) * key.shape[-2]
    return int(2 * rows * (query.shape[-1] + value.shape[-1]))


def _attention_backward(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    """Five products: the scores once more, then the gradients of P, V, Q and K."""
    _grad, query, key, value = args[:4]
    rows = math.prod(query.shape[:-1]) * key.shape[-2]
    return int(2 * rows * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _grouped_mm(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Groups along K (both operands 2-D) share the sum; along any other axis they share rows."""
    left, right, out = args[0], args[1], made[0]
    cells = math.prod(out.shape[-2:]) if left.dim() == right.dim() == 2 else out.numel()
    return 2 * cells * int(left.shape[-1])


def _recurrent(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    """Every token meets every weight matrix; the weights are the last list of tensors."""
    weights = [list(tensors_in(a)) for a in args if isinstance(a, list | tuple)]
    matrices = next(w for w in reversed(weights) if w)
    tokens = args[0].numel() // args[0].shape[-1]
    return int(2 * tokens * sum(w.numel() for w in matrices if w.dim() == 2))


def _mkldnn_recurrent(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    tokens = args[0].numel() // args[0].shape[-1]
    return int(2 * tokens * (args[1].numel() + args[2].numel()))


def _matrix_vector(args: Sequence[Any], _: Sequence[Tensor]) -> int:
    matrix = max(tensors_in(args), key=lambda t: t.numel())
    return 2 * matrix.numel()


def _linear(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return 2 * made[0].numel() * int(args[1].shape[-1])


def _packets(*names: str) -> Iterator[Any]:
    """Look operators up; what this build of torch lacks fails here, at import."""
    return (getattr(aten, name) for name in names)


_SDPA = "_scaled_dot_product_"
_FORMULAS: dict[Any, _Formula] = {
    **dict.fromkeys(_packets("convolution", "_convolution"), _convolution),
    **dict.fromkeys(_packets("mkldnn_convolution", "cudnn_convolution"), _mkldnn_convolution),
    aten.convolution_backward: _convolution_backward,
    aten.addmm_: lambda args, made: int(2 * made[0].numel() * args[1].shape[1]),
    **dict.fromkeys(
        _packets(
            f"{_SDPA}flash_attention_for_cpu",
            f"{_SDPA}flash_attention",
            f"{_SDPA}efficient_attention",
            f"{_SDPA}cudnn_attention",
            f"{_SDPA}fused_attention_overrideable",
            f"{_SDPA}attention_math",
        ),
        _attention,
    ),
    **dict.fromkeys(
        _packets(
            f"{_SDPA}flash_attention_for_cpu_backward",
            f"{_SDPA}flash_attention_backward",
            f"{_SDPA}efficient_attention_backward",
            f"{_SDPA}cudnn_attention_backward",
            f"{_SDPA}fused_attention_overrideable_backward",
        ),
        _attention_backward,
    ),
    aten._grouped_mm: _grouped_mm,
    **dict.fromkeys(_packets("lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn"), _recurrent),
    aten._cudnn_rnn_backward: lambda args, made: 2 * _recurrent(args, made),
    aten.mkldnn_rnn_layer: _mkldnn_recurrent,
    aten.mkldnn_rnn_layer_backward: lambda args, made: 2 * _mkldnn_recurrent(args, made),
    **dict.fromkeys(_packets("mv", "addmv", "dot", "vdot"), _matrix_vector),
    aten.linear: _linear,
}

_CONVOLUTIONS = frozenset(
    _packets("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
) | {aten.convolution_backward}
_ATTENTION = frozenset(p for p in _FORMULAS if _FORMULAS[p] in {_attention, _attention_backward})

# They name a tensor without touching its elements.
_MOVE_NOTHING = frozenset(
    _packets(
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"
    )
)
# They read as much of their first tensor as they return, not all of it.
_READ_WHAT_THEY_WRITE = frozenset(
    _packets("embedding", "index", "index_select", "gather", "slice_copy", "select_copy")
)
