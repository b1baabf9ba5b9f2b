"""Fake kernels for operators whose own are too strict, or return other types or layouts.

Knows shapes and strides of results. Knows nothing of capture.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._prims_common import suggest_memory_format
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.graphs.torch_api.patches import Patches

_GROUPED = torch.ops.aten._grouped_mm.default
_LAYER_NORM = torch.ops.aten.native_layer_norm.default
_GROUP_NORM = torch.ops.aten.native_group_norm.default


def _grouped_mm(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return what a grouped product returns, in any dtype; torch's own knows bfloat16 alone.

    Rows are padded to 16 bytes, as the kernel pads them.
    """
    if a.dim() == b.dim() == 2:
        assert offs is not None
        size = (offs.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 2:
        size = (a.shape[0], b.shape[2])  # type: ignore[assignment]
    elif b.dim() == 2:
        size = (a.shape[1], b.shape[1])  # type: ignore[assignment]
    else:
        size = (a.shape[0], a.shape[1], b.shape[2])
    dtype = out_dtype or a.dtype
    per_line = 16 // dtype.itemsize
    row = -(-size[-1] // per_line) * per_line
    stride = (row, 1) if len(size) == 2 else (size[1] * row, row, 1)
    with mode:
        return torch.empty_strided(size, stride, dtype=dtype, device=a.device)


def _layer_norm(
    mode: FakeTensorMode, func: Any, x: Tensor, shape: Any, weight: Tensor | None, *rest: Any
) -> Any:
    """Return what layer norm returns under autocast on a CPU: statistics in single precision."""
    if not _mixed_on_cpu(x, weight):
        return NotImplemented
    counts = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    return _normalized(mode, x, counts, torch.contiguous_format)


def _group_norm(
    mode: FakeTensorMode, func: Any, x: Tensor, weight: Tensor | None, *rest: Any
) -> Any:
    """Return what group norm returns under autocast on a CPU: statistics in single precision."""
    if not _mixed_on_cpu(x, weight):
        return NotImplemented
    _, n, _, _, groups, _ = rest
    return _normalized(mode, x, (n, groups), suggest_memory_format(x))


def _mixed_on_cpu(x: Tensor, weight: Tensor | None) -> bool:
    return x.device.type == "cpu" and weight is not None and weight.dtype != x.dtype


def _normalized(
    mode: FakeTensorMode, x: Tensor, counts: tuple[int, ...], layout: torch.memory_format
) -> tuple[Tensor, ...]:
    with mode:
        mean = torch.empty(counts, dtype=torch.float32, device=x.device)
        return torch.empty_like(x, memory_format=layout), mean, torch.empty_like(mean)


def _ctc_loss(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    scores: Tensor,
    targets: Tensor,
    inputs: Any,
    lengths: Any,
    *rest: Any,
    **said: Any,
) -> tuple[Tensor, Tensor]:
    """Return what CTC loss returns, its second result as large as it gets for these targets.

    Only the backward kernel reads that one.
    """
    longest = targets.shape[-1] if isinstance(lengths, Tensor) else max((0, *lengths))
    steps, rows, _ = scores.shape
    with mode:
        loss = torch.empty(rows, dtype=scores.dtype, device=scores.device)
        return loss, torch.empty(
            (rows, steps, 2 * longest + 1), dtype=scores.dtype, device=scores.device
        )


def _ctc_loss_backward(
    mode: FakeTensorMode, func: Any, gradient: Tensor, scores: Tensor, *rest: Any, **said: Any
) -> Tensor:
    with mode:
        return torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)


_OURS: dict[Any, Any] = {
    _GROUPED: _grouped_mm,
    _LAYER_NORM: _layer_norm,
    _GROUP_NORM: _group_norm,
    torch.ops.aten._ctc_loss.default: _ctc_loss,
    torch.ops.aten._ctc_loss.Tensor: _ctc_loss,
    torch.ops.aten._ctc_loss_backward.default: _ctc_loss_backward,
    torch.ops.aten._ctc_loss_backward.Tensor: _ctc_loss_backward,
}


def _batch_norm(made_by: Any) -> Any:
    """Make batch norm lay out a permuted batch anew, as on a CPU."""
    return lambda x, *rest: made_by(_laid(x), *rest)


def _like_batch(made_by: Any) -> Any:
    """Make the gradient of a normalization lie as its result did, whatever arrives there."""

    def composed(gradient: Tensor, x: Tensor, *rest: Any) -> Any:
        laid = x if _lies_as_kept(x) else x.contiguous()
        return made_by(torch.empty_like(laid, dtype=gradient.dtype), laid, *rest)

    return composed


def _dropout_backward(made_by: Any) -> Any:
    """Make the gradient of dropout lie as the product that it is."""
    return lambda gradient, mask, scale: gradient * mask


def _laid(x: Tensor) -> Tensor:
    """Return a batch as batch norm on a CPU lays its result: contiguous, or with channels last."""
    if x.is_contiguous() or not _lies_as_kept(x):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return x


def _lies_as_kept(x: Tensor) -> bool:
    """Tell a layout that batch norm keeps: contiguous, or with the channels last."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    kept = (torch.contiguous_format, *([last[x.dim()]] if x.dim() in last else []))
    return x.device.type != "cpu" or any(x.is_contiguous(memory_format=f) for f in kept)


def _contiguous(made_by: Any) -> Any:
    """Make the gradient of a loss contiguous, however the prediction lies."""
    return lambda *args, **kwargs: made_by(*args, **kwargs).contiguous()


_DECOMPOSED: dict[Any, Any] = {
    torch.ops.aten._native_batch_norm_legit_functional.default: _batch_norm,
    torch.ops.aten._native_batch_norm_legit.no_stats: _batch_norm,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _like_batch,
    torch.ops.aten.batch_norm_backward.default: _like_batch,
    torch.ops.aten.native_layer_norm_backward.default: _like_batch,
    torch.ops.aten.native_group_norm_backward.default: _like_batch,
    torch.ops.aten.native_dropout_backward.default: _dropout_backward,
    torch.ops.aten.mse_loss_backward.default: _contiguous,
    torch.ops.aten.smooth_l1_loss_backward.default: _contiguous,
    torch.ops.aten.huber_loss_backward.default: _contiguous,
}
"""What to change of those fake kernels that are compositions in Python."""


def use_fakes(patches: Patches, fakes: Mapping[Any, Any]) -> None:
    """Use fake kernels by operator; what was remembered of others is forgotten."""
    patches.on_undo(FakeTensorMode.cache_clear)
    for op, kernel in fakes.items():
        patches.entry(fake_impls.op_implementations_dict, op, kernel)
    FakeTensorMode.cache_clear()


def lenient_kernels(patches: Patches) -> None:
    """Use these fake kernels."""
    use_fakes(patches, _OURS)
    patches.attribute(torch, "ctc_loss", _lengths_as_tensors(patches, torch.ctc_loss))
    for op in _DECOMPOSED:
        patches.entry(decomposition_table, op, _changed(op, decomposition_table[op]))
    FakeTensorMode.cache_clear()


def _lengths_as_tensors(patches: Patches, own: Any) -> Any:
    """Let CTC loss take its lengths as tensors: of a list it would make one that cannot be fake."""

    def called(scores: Tensor, targets: Tensor, inputs: Any, lengths: Any, *rest: Any) -> Any:
        if patches.mine() and not isinstance(lengths, Tensor):
            inputs, lengths = torch.tensor(inputs), torch.tensor(lengths)
        return own(scores, targets, inputs, lengths, *rest)

    return called


def _changed(op: Any, composed: Any) -> Any:
    return functools.update_wrapper(_DECOMPOSED[op](composed), composed)
