"""CUDA's kernels in place of a CPU's, on fake tensors of a CPU.

| operator | on CUDA | source, in aten/src/ATen/native |
|---|---|---|
| attention | cuDNN's, flash, memory-efficient or math | transformers/cuda/sdp_utils.cpp |
| dropout | one that returns a mask, a byte an element | Dropout.cpp, is_fused_kernel_acceptable |
| RMS norm | one that keeps the reciprocal of the norm | layer_norm.cpp, rms_norm |
| LSTM and GRU cells | two products and a fused kernel | RNN.cpp, CUDA's branch of the cells |
| batch norm | statistics in single precision for narrow types | cuda/Normalization.cu, acc_type |
| embedding bag | the bag of every index, whatever the mode | cuda/EmbeddingBag.cu |

``benchmarks.as_on_cuda`` compares layers and models with what a build of torch for CUDA calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.graphs.torch_api.cuda.attention import attention_as
from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.dispatch import composed, use_composition
from planner.graphs.torch_api.fake_kernels import use_fakes
from planner.graphs.torch_api.patches import Patches

aten = torch.ops.aten


def kernels_of_cuda(patches: Patches, card: Card) -> None:
    """Let operators that fall apart under capture do so as on a card.

    Args:
        patches: what may be undone.
        card: that is planned for.
    """
    ours: dict[Any, Callable[..., Any]] = {
        aten.scaled_dot_product_attention.default: attention_as(card),
        aten.dropout.default: _dropout,
        aten.rms_norm.default: _rms_norm,
        aten.lstm_cell.default: _lstm_cell,
        aten.gru_cell.default: _gru_cell,
    }
    for op, kernel in ours.items():
        use_composition(patches, op, kernel)
    for op in _BATCH_NORMS:
        patches.entry(decomposition_table, op, _wide_statistics(decomposition_table[op]))
    use_fakes(patches, _FAKES)
    # on a CPU this one is the sum of its parts, into which the modes that trace would take it apart
    patches.attribute(aten._fused_rms_norm.default, "decompose", _whole)


def grids_by_torch(patches: Patches) -> None:
    """Sample grids by torch's own kernel where a card may take cuDNN's, which has no fake.

    Args:
        patches: what may be undone.
    """
    use_composition(patches, aten.grid_sampler.default, _grid_sampler)


def _grid_sampler(x: Tensor, grid: Tensor, *rest: Any) -> Tensor:
    made: Tensor = (aten.grid_sampler_2d if x.dim() == 4 else aten.grid_sampler_3d)(x, grid, *rest)
    return made


def _gru_cell_fake(
    mode: FakeTensorMode, func: Any, gates: Tensor, _: Tensor, hidden: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Return the state and what backward needs: gates and new state, five a unit."""
    with mode:
        rows, units = hidden.shape
        return torch.empty_like(hidden), gates.new_empty(rows, 5 * units)


def _gru_cell_backward_fake(
    mode: FakeTensorMode, func: Any, gradient: Tensor, workspace: Tensor, has_bias: Any
) -> tuple[Tensor | None, ...]:
    with mode:
        rows, units = gradient.shape
        gates = workspace.new_empty(rows, 3 * units)
        biases = [gates.new_empty(3 * units) if has_bias else None for _ in range(2)]
        return gates, torch.empty_like(gates), torch.empty_like(gradient), *biases


def _embedding_bag_fake(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_by_frequency: Any = None,
    kind: int = 0,
    sparse: Any = None,
    weights: Tensor | None = None,
    with_last: Any = None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return the sums, and what backward needs: bags of indices, their sizes, places of maxima."""
    bags, width = offsets.shape[0] - bool(with_last), weight.shape[1]
    with mode:
        return (
            weight.new_empty(bags, width),
            torch.empty_like(indices),
            indices.new_empty(offsets.shape),
            indices.new_empty((bags, width) if kind == _MAXIMUM else 0),
        )


def _wide_statistics(composed: Any) -> Any:
    """Make batch norm of a narrow type keep its statistics in single precision."""

    def normalized(x: Tensor, *rest: Any) -> Any:
        made, mean, scale, *buffers = composed(x, *rest)
        return made, mean.float(), scale.float(), *buffers

    return functools.update_wrapper(normalized, composed)


_MAXIMUM = 2
_BATCH_NORMS = (
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit.default,
    aten.native_batch_norm.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_with_update_functional.default,
)
_FAKES: dict[Any, Any] = {
    aten._embedding_bag.default: _embedding_bag_fake,
    aten._thnn_fused_gru_cell.default: _gru_cell_fake,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward_fake,
}


def _whole(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:  # noqa: FBT001, the operator's own
    if train and 0 < p < 1 and x.numel():
        made: Tensor = aten.native_dropout.default(x, p, train)[0]
        return made
    whole: Tensor = composed(aten.dropout.default, x, p, train)
    return whole


class _FusedRmsNorm(torch.autograd.Function):
    """The fused kernel, which a CPU lacks: there its name means the sum of its parts."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            made: Tensor
            made, scale = aten._fused_rms_norm.default(x, shape, weight, eps)
        ctx.shape = shape
        ctx.save_for_backward(x, scale, weight)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale, weight = ctx.saved_tensors
        wanted = [bool(ctx.needs_input_grad[0]), bool(ctx.needs_input_grad[2])]
        dx, dw = aten._fused_rms_norm_backward.default(
            gradients[0], x, ctx.shape, scale, weight, wanted
        )
        return dx, None, dw, None


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if weight is not None and weight.dtype != x.dtype:
        made: Tensor = composed(aten.rms_norm.default, x, shape, weight, eps)
        return made
    apply: Any = _FusedRmsNorm.apply
    fused: Tensor = apply(x, list(shape), weight, eps)
    return fused


def _gates(x: Tensor, hidden: Tensor, w_x: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.matmul(x, w_x.t()), torch.matmul(hidden, w_h.t())


def _lstm_cell(  # noqa: PLR0917, the operator's own signature
    x: Tensor,
    state: Sequence[Tensor],
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None = None,
    b_h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    hidden, cell = state
    gates = _gates(x, hidden, w_x, w_h)
    made = aten._thnn_fused_lstm_cell.default(*gates, cell, b_x, b_h)
    return made[0], made[1]


def _gru_cell(  # noqa: PLR0917, the operator's own signature
    x: Tensor,
    hidden: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None = None,
    b_h: Tensor | None = None,
) -> Tensor:
    gates = _gates(x, hidden, w_x, w_h)
    made: Tensor = aten._thnn_fused_gru_cell.default(*gates, hidden, b_x, b_h)[0]
    return made
