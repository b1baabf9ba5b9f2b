"""Layers and models whose kernels on a card are known: what ``benchmarks.as_on_cuda`` compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import ZOO

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A forward pass; ``build`` makes the model and its inputs on the default device."""

    name: str
    build: Callable[[], tuple[nn.Module, Any]]
    autocast: bool = False


class Call(nn.Module):
    """A function of tensors, and the layers in it."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> Any:
        """Call it."""
        return self.function(*self.parts, *tensors)


def _layer(make: Callable[[], nn.Module], *sizes: tuple[int, ...], dtype: Any = None) -> Any:
    def build() -> tuple[nn.Module, Any]:
        return make().to(dtype or torch.float32), _floats(sizes, dtype)

    return build


def _call(function: Callable[..., Any], *sizes: tuple[int, ...], dtype: Any = None) -> Any:
    return _layer(lambda: Call(function), *sizes, dtype=dtype)


def _floats(sizes: tuple[tuple[int, ...], ...], dtype: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(s, dtype=dtype or torch.float32).requires_grad_() for s in sizes)


def _with_indices(make: Callable[[], nn.Module], size: tuple[int, ...]) -> Any:
    return lambda: (make(), (torch.zeros(size, dtype=torch.long),))


def _last(convolution: nn.Module, x: Tensor) -> Any:
    return convolution(x.contiguous(memory_format=torch.channels_last))


def _attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, **how)


def _masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attend(q, k, v, attn_mask=torch.zeros(8, 8, device=q.device))


def _heads(layer: nn.Module, x: Tensor) -> Any:
    return layer(x, x, x, need_weights=False)[0]


def _ctc(x: Tensor) -> Tensor:
    targets = torch.zeros(2, 3, dtype=torch.long, device=x.device)
    lengths = torch.full((2,), 5, device=x.device), torch.full((2,), 3, device=x.device)
    return functional.ctc_loss(x.log_softmax(-1), targets, *lengths)


def _cross_entropy(x: Tensor, **how: Any) -> Tensor:
    return functional.cross_entropy(x, torch.zeros(4, dtype=torch.long, device=x.device), **how)


_FLAT, _IMAGE, _QKV = (4, 8), (2, 8, 4, 4), ((1, 2, 8, 16),) * 3
_PICTURE = (2, 3, 8, 8)

_LAYERS: dict[str, Any] = {
    "layer norm": _layer(lambda: nn.LayerNorm(8), _FLAT),
    "layer norm, bfloat16": _layer(lambda: nn.LayerNorm(8), _FLAT, dtype=BF16),
    "RMS norm": _layer(lambda: nn.RMSNorm(8), _FLAT),
    "RMS norm, bfloat16": _layer(lambda: nn.RMSNorm(8), _FLAT, dtype=BF16),
    "group norm": _layer(lambda: nn.GroupNorm(2, 8), _IMAGE),
    "group norm, bfloat16": _layer(lambda: nn.GroupNorm(2, 8), _IMAGE, dtype=BF16),
    "batch norm": _layer(lambda: nn.BatchNorm2d(8), _IMAGE),
    "batch norm, bfloat16": _layer(lambda: nn.BatchNorm2d(8), _IMAGE, dtype=BF16),
    "batch norm, evaluation": _layer(lambda: nn.BatchNorm2d(8).eval(), _IMAGE),
    "batch norm 1d": _layer(lambda: nn.BatchNorm1d(8), _FLAT),
    "instance norm": _layer(lambda: nn.InstanceNorm2d(8), _IMAGE),
    "softmax": _call(lambda x: functional.softmax(x, -1), _FLAT, dtype=BF16),
    "softmax, dtype": _call(
        lambda x: functional.softmax(x, -1, dtype=torch.float32), _FLAT, dtype=BF16
    ),
    "log_softmax, dtype": _call(
        lambda x: functional.log_softmax(x, -1, dtype=torch.float32), _FLAT, dtype=BF16
    ),
    "cross entropy": _call(_cross_entropy, _FLAT),
    "cross entropy, bfloat16": _call(_cross_entropy, _FLAT, dtype=BF16),
    "cross entropy, smoothed": _call(lambda x: _cross_entropy(x, label_smoothing=0.1), _FLAT),
    "dropout .1": _call(lambda x: functional.dropout(x, 0.1), _FLAT),
    "dropout .15": _call(lambda x: functional.dropout(x, 0.15), _FLAT),
    "dropout, bfloat16": _call(lambda x: functional.dropout(x, 0.1), _FLAT, dtype=BF16),
    "dropout2d": _call(lambda x: functional.dropout2d(x, 0.1), _PICTURE),
    "alpha dropout": _call(lambda x: functional.alpha_dropout(x, 0.1, training=True), _FLAT),
    "attention": _call(_attend, *_QKV),
    "attention, causal": _call(lambda *x: _attend(*x, is_causal=True), *_QKV),
    "attention, causal, bfloat16": _call(lambda *x: _attend(*x, is_causal=True), *_QKV, dtype=BF16),
    "attention, mask": _call(_masked, *_QKV),
    "attention, dropout": _call(lambda *x: _attend(*x, dropout_p=0.1), *_QKV),
    "multihead attention": _layer(
        lambda: Call(_heads, nn.MultiheadAttention(16, 2, batch_first=True)), (2, 4, 16)
    ),
    "transformer layer": _layer(
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (2, 4, 16)
    ),
    "LSTM cell": _layer(lambda: nn.LSTMCell(8, 8), (2, 8)),
    "GRU cell": _layer(lambda: nn.GRUCell(8, 8), (2, 8)),
    "RNN cell": _layer(lambda: nn.RNNCell(8, 8), (2, 8)),
    "LSTM": _layer(lambda: nn.LSTM(8, 8), (3, 2, 8)),
    "GRU": _layer(lambda: nn.GRU(8, 8), (3, 2, 8)),
    "RNN": _layer(lambda: nn.RNN(8, 8), (3, 2, 8)),
    "convolution": _layer(lambda: nn.Conv2d(3, 8, 3), _PICTURE),
    "convolution, channels last": _layer(lambda: Call(_last, nn.Conv2d(3, 8, 3)), _PICTURE),
    "convolution, bfloat16": _layer(lambda: nn.Conv2d(3, 8, 3), _PICTURE, dtype=BF16),
    "convolution 1d": _layer(lambda: nn.Conv1d(3, 8, 3), (2, 3, 8)),
    "convolution 3d": _layer(lambda: nn.Conv3d(3, 8, 3), (2, 3, 8, 8, 8)),
    "transposed convolution": _layer(lambda: nn.ConvTranspose2d(3, 8, 2, 2), _PICTURE),
    "depthwise convolution": _layer(lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 8, 8)),
    "max pool": _call(lambda x: functional.max_pool2d(x, 2), _PICTURE),
    "adaptive average": _call(lambda x: functional.adaptive_avg_pool2d(x, 4), (2, 3, 9, 9)),
    "bilinear": _call(
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), _PICTURE
    ),
    "grid sample": _call(
        lambda x, grid: functional.grid_sample(x, grid, align_corners=True), _PICTURE, (2, 4, 4, 2)
    ),
    "affine grid": _call(
        lambda theta: functional.affine_grid(theta, [2, 3, 8, 8], align_corners=True), (2, 2, 3)
    ),
    "CTC": _call(_ctc, (5, 2, 4)),
    "embedding": _with_indices(lambda: nn.Embedding(8, 4), (3,)),
    "embedding bag": _with_indices(lambda: nn.EmbeddingBag(8, 4), (2, 3)),
    "weight norm": _layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), (2, 8)),
    "linear 3d": _layer(lambda: nn.Linear(8, 8), (2, 3, 8)),
    "linear and relu, bfloat16": _layer(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (2, 8), dtype=BF16
    ),
    "cumsum": _call(lambda x: x.cumsum(0), _FLAT),
    "sort": _call(lambda x: x.sort()[0], _FLAT),
    "topk": _call(lambda x: x.topk(2)[0], _FLAT),
    "einsum": _call(lambda a, b: torch.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)),
    "gelu": _call(lambda x: functional.gelu(x, approximate="tanh"), _FLAT),
    "PReLU": _layer(nn.PReLU, _FLAT),
    "RReLU": _call(lambda x: functional.rrelu(x, training=True), _FLAT),
    "std": _call(lambda x: x.std(), _FLAT),
    "norm": _call(lambda x: x.norm(dim=1), _FLAT),
    "cdist": _call(torch.cdist, _FLAT, _FLAT),
    "bmm, bfloat16": _call(torch.bmm, (2, 3, 4), (2, 4, 5), dtype=BF16),
}

_UNDER_AUTOCAST = (
    "layer norm", "RMS norm", "group norm", "batch norm", "softmax", "cross entropy",
    "attention", "attention, dropout", "LSTM cell", "convolution", "linear 3d", "cumsum", "einsum",
    "norm", "cdist", "transformer layer",
)  # fmt: skip


def _cases() -> Iterator[Case]:
    for name, build in _LAYERS.items():
        yield Case(name, build)
    for name in _UNDER_AUTOCAST:
        yield Case(f"{name}, autocast", _LAYERS[name], autocast=True)
    for name in ZOO:
        yield Case(f"{name} (model)", ZOO[name])
        yield Case(f"{name} (model), autocast", ZOO[name], autocast=True)


CASES = tuple(_cases())
