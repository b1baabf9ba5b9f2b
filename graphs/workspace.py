"""Formulas for scratch memory, for operators that cannot be run: too large, or not on this device.

Knows what oneDNN and ATen allocate on a CPU, as observed. Knows nothing of accelerators, whose
kernels take little beyond their outputs: for those the answer is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphs.calls import Call, device_of
from graphs.costs import tensors_in

aten = torch.ops.aten


def estimate_workspace(call: Call, outputs: object) -> int:
    """Estimate the scratch bytes of a call from its shapes; 0 where no formula is known.

    Formulas: convolutions and their backward (layouts copied to blocked ones), attention on a CPU
    and its backward, dropout, the backward of batch norm, and sums of mixed dtypes.

    >>> image, weight = torch.empty(8, 64, 56, 56), torch.empty(64, 64, 3, 3)
    >>> geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    >>> call = Call(aten.convolution.default, (image, weight, None, *geometry))
    >>> estimate_workspace(call, image) == image.nbytes + weight.nbytes
    True
    """
    formula = _FORMULAS.get(call.target.overloadpacket)
    made = list(tensors_in(outputs))
    if formula is None or not made or device_of(call).type == "cuda":
        return 0
    return formula(call, made)


def _convolution(call: Call, made: list[Tensor]) -> int:
    """Image, weight and result in blocked layout; then the blocked result beside the plain one."""
    image, weight, transposed = call.args[0], call.args[1], call.args[6]
    if transposed:
        return 2 * made[0].nbytes
    return max(int(image.nbytes + weight.nbytes), made[0].nbytes)


def _convolution_backward(call: Call, _: list[Tensor]) -> int:
    """Gradient and image in blocked layout at once, and at most the weight beside them."""
    grad, image, weight = call.args[:3]
    return int(grad.nbytes + image.nbytes + weight.nbytes)


def _tile_bytes(query: Tensor, key: Tensor, tiles: int) -> int:
    """Return the float32 tiles of scores that the threads hold."""
    rows = 256 if query.shape[-2] >= 768 else 64 if query.shape[-2] >= 192 else 32
    columns = min(512, key.shape[-2])
    return 4 * torch.get_num_threads() * rows * (tiles * columns + query.shape[-1] + 2)


def _attention(call: Call, _: list[Tensor]) -> int:
    return _tile_bytes(call.args[0], call.args[1], 1)


def _attention_backward(call: Call, _: list[Tensor]) -> int:
    return int(call.args[1].nbytes) + _tile_bytes(call.args[1], call.args[2], 2)


def _dropout(call: Call, made: list[Tensor]) -> int:
    """The mask is drawn in the input's dtype."""
    return made[0].nbytes


def _batch_norm_backward(call: Call, made: list[Tensor]) -> int:
    return made[0].nbytes


def _mixed(call: Call, made: list[Tensor]) -> int:
    """An operand of another floating dtype is converted whole."""
    sizes = (t.numel() for t in tensors_in(call.args) if t.dim() and t.dtype != made[0].dtype)
    return made[0].element_size() * sum(sizes)


_FORMULAS: dict[object, Callable[[Call, list[Tensor]], int]] = {
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
