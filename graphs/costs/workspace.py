"""Formulas for what operators take that cannot be run: too large, or not on this device.

Knows what oneDNN and ATen allocate on a CPU, as observed. Knows nothing of accelerators, whose
kernels take little beyond their outputs: for those the answer is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from planner.graphs.costs.operator_call import OperatorCall, device_of
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.operators import said

aten = torch.ops.aten


def estimate_workspace(call: OperatorCall) -> int:
    """Estimate the bytes of workspace of a call from its shapes; 0 where no formula is known.

    Formulas: convolutions and their backward (layouts copied to blocked ones), attention on a CPU
    and its backward, dropout, the backward of batch norm, and arithmetic on mixed dtypes.

    >>> image, weight = torch.empty(8, 64, 56, 56), torch.empty(64, 64, 3, 3)
    >>> geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    >>> call = OperatorCall(aten.convolution.default, (image, weight, None, *geometry))
    >>> estimate_workspace(call) == image.nbytes + weight.nbytes
    True
    """
    formula = _FORMULAS.get(call.target.overloadpacket)
    return 0 if formula is None or device_of(call).type == "cuda" else formula(call)


def needs_no_workspace(call: OperatorCall) -> bool:
    """Say of a view, or of a product that BLAS takes as it is, that it allocates nothing else.

    >>> x = torch.empty(64, 64)
    >>> needs_no_workspace(OperatorCall(aten.mm.default, (x, x.t())))
    True
    >>> needs_no_workspace(OperatorCall(aten.mm.default, (x[::2, ::2], x[:32, :])))
    False
    """
    if call.target.is_view:
        return True
    if call.target not in _PRODUCTS or device_of(call).type != "cpu":
        return False
    return all(map(_is_blas_matrix, list(tensors_in(call.args))[-2:]))


def _is_blas_matrix(tensor: Tensor) -> bool:
    """Rows or columns lie dense in memory and apart: anything else is copied first."""
    (rows, columns), (down, along) = tensor.shape[-2:], tensor.stride()[-2:]
    dense = (along == 1 and down >= columns) or (down == 1 and along >= rows)
    return dense and tensor.dtype in (torch.float32, torch.float64)


def _convolution(call: OperatorCall) -> int:
    """Image, weight and result in blocked layout; then the blocked result beside the plain one."""
    image, weight, _, _, _, _, transposed, *_ = call.args
    result = _convolved_elements(call) * int(image.element_size())
    return 2 * result if transposed else max(int(image.nbytes + weight.nbytes), result)


def _convolved_elements(call: OperatorCall) -> int:
    """Return how many elements a convolution makes."""
    image, weight, _, stride, padding, dilation, transposed, extra, groups = call.args

    def length(axis: int) -> int:
        given, reach = image.shape[axis + 2], dilation[axis] * (weight.shape[axis + 2] - 1)
        if transposed:
            return int((given - 1) * stride[axis] - 2 * padding[axis] + reach + extra[axis] + 1)
        return int((given + 2 * padding[axis] - reach - 1) // stride[axis] + 1)

    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return int(image.shape[0] * channels) * math.prod(map(length, range(image.dim() - 2)))


def _convolution_backward(call: OperatorCall) -> int:
    """Gradient and image in blocked layout at once, and at most the weight beside them."""
    grad, image, weight = call.args[:3]
    return int(grad.nbytes + image.nbytes + weight.nbytes)


def _tile_bytes(query: Tensor, key: Tensor, tiles: int) -> int:
    """Return the float32 tiles of scores that the threads hold."""
    rows = 256 if query.shape[-2] >= 768 else 64 if query.shape[-2] >= 192 else 32
    columns = min(512, key.shape[-2])
    return 4 * torch.get_num_threads() * rows * (tiles * columns + query.shape[-1] + 2)


def _attention(call: OperatorCall) -> int:
    return _tile_bytes(call.args[0], call.args[1], 1)


def _attention_backward(call: OperatorCall) -> int:
    return int(call.args[1].nbytes) + _tile_bytes(call.args[1], call.args[2], 2)


def _dropout(call: OperatorCall) -> int:
    """The mask is drawn in the input's dtype."""
    return int(call.args[0].nbytes)


def _batch_norm_backward(call: OperatorCall) -> int:
    return int(call.args[0].nbytes)


def _mixed(call: OperatorCall) -> int:
    """An operand of another dtype is converted whole."""
    operands = [t for t in tensors_in(call.args) if t.dim()]
    if len({t.dtype for t in operands}) < 2:
        return 0
    common = torch.result_type(operands[0], operands[1])
    return common.itemsize * sum(t.numel() for t in operands if t.dtype != common)


_PRODUCTS = frozenset((aten.mm.default, aten.addmm.default, aten.bmm.default))
_FORMULAS: dict[object, Callable[[OperatorCall], int]] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.native_dropout: _dropout,
    aten.native_batch_norm_backward: _batch_norm_backward,
    aten.add: _mixed,
    aten.sub: _mixed,
    aten.mul: _mixed,
    aten.div: _mixed,
}


_LOSSES = frozenset(
    {
        aten.mse_loss.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
        aten.binary_cross_entropy.default,
    }
)


def scalar_buffer(call: OperatorCall) -> tuple[int, ...]:
    """Return the bytes in which a loss leaves its mean or sum, empty for other calls.

    The scalar lies where the losses of all elements were, on a CPU and on CUDA; a fake tensor has
    room for itself alone. An H200 showed it for ``mse_loss`` (``benchmarks.gpu``).

    >>> x = torch.empty(8, 8, device="meta")
    >>> scalar_buffer(OperatorCall(torch.ops.aten.mse_loss.default, (x, x)))
    (256,)
    >>> scalar_buffer(OperatorCall(torch.ops.aten.mse_loss.default, (x, x, 0)))
    ()
    """
    if call.target not in _LOSSES:
        return ()
    reduces = said(call.target, call.args, call.kwargs).get("reduction", 1)
    left, right = call.args[:2]
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]
    each = torch.promote_types(left.dtype, right.dtype).itemsize
    return (math.prod(shape) * each,) if reduces else ()
