"""Autocast by CUDA's rules, on fake tensors of a CPU.

The lists are those of aten/src/ATen/autocast_mode.h for the key Autocast, which this build of torch
has registered, too: a test compares them. Code that names a type of device, "cpu" because that is
where the fakes are, reaches the same state as code that names "cuda".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.amp import autocast_mode

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.autocast_cache import (
    Casts,
    cast_first,
    follow_the_code,
    lower,
    may_be_cast,
    overload,
)
from planner.graphs.torch_api.dispatch import use_kernel, without_autocast
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.pytree import tree_leaves

_enabled = torch.is_autocast_enabled
_dtype = torch.get_autocast_dtype
_set_enabled = torch.set_autocast_enabled
_set_dtype = torch.set_autocast_dtype
_KEY = DispatchKey.AutocastCUDA
_NAMES = {"cpu", "cuda"}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LOWER = _names("""
    _convolution _convolution.deprecated conv1d conv2d conv3d
    conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input
    convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm
    bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell
    gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
    scaled_dot_product_attention cudnn_convolution cudnn_convolution_transpose
""")
"""Operators that run in the narrow type."""

SINGLE = _names("""
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm
    rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity
    poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div
    l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss
    soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist
    pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa
""")
"""Operators that run in single precision."""

SINGLE_RESULT = _names("""
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
    linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
""")
"""Operators that make single precision unless they are told a dtype."""

WIDEST = _names("""
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
""")
"""Operators that run in the widest type of their operands."""

NORMS = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}
"""Operators that give way to one that takes a dtype."""

BANNED = ("binary_cross_entropy",)


@contextmanager
def autocast_of_cuda(patches: Patches, casts: Casts) -> Iterator[None]:
    """Let the present autocast, whichever device it is for, be CUDA's while the block runs.

    Args:
        patches: what may be undone.
        casts: that are kept.
    """
    enabled = {name: _enabled(name) for name in _NAMES}
    dtypes = {name: _dtype(name) for name in _NAMES}
    dtype = dtypes["cuda" if enabled["cuda"] else "cpu"]
    casts_on_cuda(patches, casts)
    _one_state(patches)
    try:
        _set_enabled("cpu", False)  # noqa: FBT003
        _set_enabled("cuda", any(enabled.values()))
        _set_dtype("cuda", dtype)
        with torch._C._IncludeDispatchKeyGuard(_KEY):
            yield
    finally:
        for name in _NAMES:
            _set_enabled(name, enabled[name])
            _set_dtype(name, dtypes[name])


def casts_on_cuda(patches: Patches, casts: Casts) -> None:
    """Cast by CUDA's rules, each parameter once.

    Args:
        patches: what may be undone.
        casts: that are kept.
    """
    kinds: tuple[tuple[tuple[str, ...], Callable[[Any, Casts], Any]], ...] = (
        (LOWER, lower),
        (SINGLE, _single),
        (SINGLE_RESULT, _single_result),
        (WIDEST, _widest),
        (tuple(NORMS), _norm),
        (BANNED, _banned),
    )
    for names, rule in kinds:
        for op in map(overload, names):
            use_kernel(patches, op, _KEY, rule(op, casts))
    follow_the_code(patches, casts)


def _single(op: Any, casts: Casts) -> Any:
    return cast_first(op, casts, lambda _: torch.float32)


def _single_result(op: Any, _: Casts) -> Any:
    names = [a.name for a in op._schema.arguments]
    place = names.index("dtype")

    def called(*args: Any, **kwargs: Any) -> Any:
        said = args[place] if place < len(args) else kwargs.get("dtype")
        if said is None and may_be_cast(args[0]):
            kwargs = {**kwargs, "dtype": torch.float32}
            args = args[:place]
        with without_autocast():
            return op(*args, **kwargs)

    return called


def _widest(op: Any, casts: Casts) -> Any:
    def widest(arguments: Any) -> torch.dtype:
        kinds = {x.dtype for x in tree_leaves(arguments) if may_be_cast(x)}
        return torch.float32 if torch.float32 in kinds else casts.narrow

    return cast_first(op, casts, widest)


def _norm(op: Any, _: Casts) -> Any:
    typed = overload(NORMS[op._name.removeprefix("aten::")])

    def called(x: Tensor, p: Any = 2, *rest: Any) -> Any:
        with without_autocast():
            dtype = torch.float32 if may_be_cast(x) else x.dtype
            return typed(x, p, *rest, dtype=dtype)

    return called


def _banned(op: Any, _: Casts) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        raise CaptureError(
            "binary_cross_entropy is unsafe under autocast, and CUDA refuses it; use "
            "binary_cross_entropy_with_logits"
        )

    return called


def _one_state(patches: Patches) -> None:
    """Let whoever asks for, or switches, the autocast of a CPU or of CUDA mean the same one."""

    def mapped(own: Any) -> Any:
        def called(*args: Any) -> Any:
            ours = patches.mine() and args and args[0] in _NAMES
            return own(*(("cuda", *args[1:]) if ours else args))

        return called

    for own in (_enabled, _dtype, _set_enabled, _set_dtype):
        patches.attribute(torch, own.__name__, mapped(own))
    begin: Any = autocast_mode.autocast.__init__

    def init(
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,  # noqa: FBT001, FBT002
        cache_enabled: bool | None = None,  # noqa: FBT001
    ) -> None:
        if not patches.mine() or device_type not in _NAMES:
            begin(self, device_type, dtype, enabled, cache_enabled)
            return
        begin(self, "cpu", None, enabled=enabled, cache_enabled=cache_enabled)
        self.device = "cuda"
        self.fast_dtype = dtype or _dtype("cuda")

    patches.attribute(autocast_mode.autocast, "__init__", init)
