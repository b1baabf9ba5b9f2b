"""Which attention kernel CUDA runs, and the call of it.

The rules are those of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and sdp_utils_cpp.h, the
calls those of scaled_dot_product_attention in attention.cpp beside it.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.cuda.card import Card

aten = torch.ops.aten
_WIDEST = 256
_CUDNN_WIDEST = 128
_CUDNN_ROWS = 65535
_MASK_ALIGNMENT = 8


class Backend(enum.Enum):
    """The kernels of attention."""

    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


@dataclass(frozen=True, slots=True)
class Attention:
    """A call of scaled dot product attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.query, self.key, self.value

    @property
    def trains(self) -> bool:
        """Whether a backward pass will follow."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.operands)


def backend_of(call: Attention, card: Card) -> Backend:
    """Return the first kernel in CUDA's order that takes a call and is switched on.

    Args:
        call: what is called; its tensors may be fake.
        card: that it is called on.

    Raises:
        CaptureError: none does, as on the card.
    """
    cudnn = (Backend.CUDNN, _cudnn_takes)
    order = [(Backend.FLASH, _flash_takes), (Backend.EFFICIENT, _efficient_takes)]
    math_kernel = (Backend.MATH, lambda *_: True)
    order = [cudnn, *order, math_kernel] if card.prefers_cudnn else [*order, math_kernel, cudnn]
    for backend, takes in order:
        if _is_on(backend) and takes(call, card):
            return backend
    raise CaptureError(
        f"no kernel of attention that is switched on takes this call of {call.query.dtype} and "
        f"{call.query.shape[-1]} wide heads on the card; allow more of them (sdpa_kernel)"
    )


def run_attention(call: Attention, card: Card) -> Tensor:
    """Call the kernel that CUDA would.

    Args:
        call: what is called.
        card: that it would be called on.
    """
    query, key, value = call.operands
    backend, mask = backend_of(call, card), _as_bias(call.mask, query.dtype)
    p, causal, scale = call.dropout, call.is_causal, call.scale
    made: tuple[Tensor, ...]
    match backend:
        case Backend.FLASH:
            width = query.shape[-1]
            padded = (_padded(t) for t in call.operands)
            scale = 1 / math.sqrt(width) if scale is None else scale
            made = aten._scaled_dot_product_flash_attention(*padded, p, causal, scale=scale)
            return made[0][..., :width] if made[0].shape[-1] != width else made[0]
        case Backend.EFFICIENT:
            bias = None if mask is None else _aligned(mask, call)
            made = aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, call.trains, p, causal, scale=scale
            )
        case Backend.CUDNN:
            made = aten._scaled_dot_product_cudnn_attention(
                query, key, value, mask, call.trains, p, causal, scale=scale
            )
        case Backend.MATH:
            made = aten._scaled_dot_product_attention_math(
                query, key, value, mask, p, causal, None, scale=scale, enable_gqa=call.enable_gqa
            )
        case _:
            assert_never(backend)
    return made[0]


def _is_on(backend: Backend) -> bool:
    """Tell whether the user lets a kernel be used (``torch.nn.attention.sdpa_kernel``)."""
    switches: dict[Backend, Any] = {
        Backend.CUDNN: torch.backends.cuda.cudnn_sdp_enabled,
        Backend.FLASH: torch.backends.cuda.flash_sdp_enabled,
        Backend.EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled,
        Backend.MATH: torch.backends.cuda.math_sdp_enabled,
    }
    return bool(switches[backend]())


def _flash_takes(call: Attention, card: Card) -> bool:
    query, key, value = call.operands
    width = query.shape[-1]
    alike = width == key.shape[-1] == value.shape[-1] and width <= _WIDEST
    square = not call.is_causal or query.shape[-2] == key.shape[-2]
    return (
        call.mask is None
        and alike
        and square
        and card.within((8, 0), (12, 1))
        and query.dtype in card.low_precisions
        and (not call.trains or _flash_trains(width, call.dropout, card))
        and _is_dense(call)
    )


def _flash_trains(width: int, dropout: float, card: Card) -> bool:
    """Tell whether the backward kernel has the shared memory that wide heads need."""
    if card.capability is None or not (
        card.within((8, 6), (8, 9)) or card.within((12, 0), (12, 1))
    ):
        return True
    return width <= 192 or (not dropout and width > 224)


def _efficient_takes(call: Attention, card: Card) -> bool:
    query, key, value = call.operands
    narrow = query.dtype in {torch.float16, torch.bfloat16}
    alignment = _alignment(card, narrow=narrow)
    kinds = (torch.float32, *card.low_precisions)
    widths = query.shape[-1], value.shape[-1]
    fits = query.shape[-1] == key.shape[-1] and all(w > 0 and w % alignment == 0 for w in widths)
    offsets = [t.storage_offset() * t.element_size() for t in call.operands]
    placed = not card.within((8, 0), (99, 0)) or all(
        offset % (alignment * query.element_size()) == 0 for offset in offsets
    )
    alike = query.shape[-3] == key.shape[-3] == value.shape[-3]  # the kernel has no grouped heads
    return query.dtype in kinds and fits and placed and alike and _is_dense(call)


def _alignment(card: Card, *, narrow: bool) -> int:
    """Return what head sizes must be multiples of (minimum_gemm_alignment)."""
    capability = card.capability or (8, 0)
    tensor_units = capability >= (8, 0) or (capability >= (7, 0) and narrow)
    least = 4 if capability >= (8, 0) else 1
    return max(least, 128 // (16 if narrow else 32)) if tensor_units else least


def _cudnn_takes(call: Attention, card: Card) -> bool:
    query, key, value = call.operands
    widths = query.shape[-1], value.shape[-1]
    rows, heads = query.shape[:2]
    return (
        card.is_nvidia
        and card.within((8, 0), (12, 1))
        and query.dtype in card.low_precisions
        and not _must_be_deterministic()
        and (call.dropout * 16).is_integer()
        and all(w % 8 == 0 and w <= _CUDNN_WIDEST for w in widths)
        and max(rows, heads) <= _CUDNN_ROWS
        and key.shape[-2] != 1
        and not (call.dropout and query.shape[-2] == 1)
        and (call.mask is None or _cudnn_takes_mask(call.mask))
        and _is_dense(call)
    )


def _cudnn_takes_mask(mask: Tensor) -> bool:
    """Tell a mask that cuDNN can read, and that asks for no gradient, which that has none of."""
    return mask.dim() in {2, 4} and not mask.requires_grad


def _must_be_deterministic() -> bool:
    """Tell whether what is not deterministic is an error; a warning keeps no kernel out."""
    asked = torch.are_deterministic_algorithms_enabled()
    return asked and not torch.is_deterministic_algorithms_warn_only_enabled()


def _is_dense(call: Attention) -> bool:
    """Tell a call in four dimensions, none empty, heads grouped only if said, last strides 1.

    Those of the mask, too, so that one expanded along the keys is for the math kernel alone.
    """
    query, key, value = call.operands
    if not all(t.dim() == 4 and t.stride(-1) == 1 and 0 not in t.shape for t in call.operands):
        return False
    if call.mask is not None and call.mask.stride(-1) != 1:
        return False
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        return False
    heads = query.shape[1], key.shape[1], value.shape[1]
    if len(set(heads)) == 1:
        return True
    return call.enable_gqa and heads[1] == heads[2] and heads[0] % heads[1] == 0


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores: minus infinity where a boolean mask is false."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    least = torch.scalar_tensor(-math.inf, dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, least)


def _padded(operand: Tensor) -> Tensor:
    """Return an operand whose heads are a multiple of 8 wide."""
    lacking = -operand.shape[-1] % 8
    return torch.nn.functional.pad(operand, (0, lacking)) if lacking else operand


def _aligned(bias: Tensor, call: Attention) -> Tensor:
    """Return a bias of the scores' shape whose rows begin where the kernel can read them."""
    if bias.stride(-1) != 1 or any(s % _MASK_ALIGNMENT for s in bias.stride()[:-1]):
        length = bias.shape[-1]
        lacking = _MASK_ALIGNMENT - length % _MASK_ALIGNMENT
        bias = torch.nn.functional.pad(bias, (0, lacking))[..., :length]
    return bias.expand(*call.query.shape[:3], call.key.shape[2])


def attention_as(card: Card) -> Any:
    """Return ``scaled_dot_product_attention`` as it is called on a card."""

    def called(  # noqa: PLR0917, the operator's own signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = Attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return run_attention(call, card)

    return called
