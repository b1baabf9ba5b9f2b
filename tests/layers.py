"""Scenes of layers that are hard to run again: normalization, noise, recurrence, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.scenes import SCENES, Apply, chain, mlp, scene


@scene(64, 16)
def batch_norm() -> nn.Module:
    return chain(mlp(), nn.BatchNorm1d(16), nn.ReLU(), mlp(), nn.BatchNorm1d(16), mlp())


@scene(64, 16)
def batch_norm_without_weights() -> nn.Module:
    return chain(mlp(), nn.BatchNorm1d(16, affine=False), nn.ReLU(), mlp())


@scene(64, 16)
def batch_norm_without_statistics() -> nn.Module:
    return chain(mlp(), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU(), mlp())


@scene(64, 16)
def batch_norm_called_twice() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.mlp(m.norm(m.mlp(m.norm(x)))).square().mean()

    return Apply(run, norm=nn.BatchNorm1d(16), mlp=mlp())


@scene(64, 16)
def frozen_batch_norm() -> nn.Module:
    model = chain(mlp(), nn.BatchNorm1d(16), nn.ReLU(), mlp())
    model.body[1].eval()  # type: ignore[index, union-attr]
    return model


@scene(4, 8, 6, 6)
def convolutions_and_norms() -> nn.Module:
    return chain(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.GroupNorm(4, 16),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.3),
        nn.SiLU(),
    )


@scene(64, 16)
def dropout() -> nn.Module:
    return chain(mlp(), nn.Dropout(0.3), mlp(), nn.AlphaDropout(0.2), mlp(), nn.Dropout(0.5), mlp())


@scene(64, 16)
def user_drawn_noise() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = F.dropout(m.a(x), 0.4)
        mask = torch.empty_like(h).bernoulli_(0.5)
        h = m.b(h * mask + 0.1 * torch.randn_like(h))
        return (F.rrelu(h, training=True) * torch.rand(64, 1)).square().mean()

    return Apply(run, a=mlp(), b=mlp())


@scene(6, 16, 16)
def lstm() -> nn.Module:
    return Apply(
        lambda m, x: m.rnn(x)[0].square().mean(), rnn=nn.LSTM(16, 12, 2, bidirectional=True)
    )


@scene(6, 16, 16)
def lstm_with_dropout() -> nn.Module:
    return Apply(lambda m, x: m.rnn(x)[0].square().mean(), rnn=nn.LSTM(16, 12, 2, dropout=0.3))


@scene(6, 16, 16)
def gru() -> nn.Module:
    return Apply(lambda m, x: m.rnn(x)[0].square().mean(), rnn=nn.GRU(16, 12, 2, dropout=0.2))


@scene(16, 6, 16)
def attention() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.attention(x, x, x, need_weights=False)[0]
        return m.layer(h).square().mean()

    return Apply(
        run,
        attention=nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True),
        layer=nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True),
    )


@scene(64, 16)
def weight_norm() -> nn.Module:
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    return chain(mlp(), wrapped, mlp())


@scene(64, 16)
def spectral_norm() -> nn.Module:
    return chain(mlp(), nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)), mlp())


@scene(64, 16)
def statistics_read_by_the_model() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.norm(m.a(x))
        return (m.b(h * m.norm.running_var) + m.norm.running_mean).square().mean()

    return Apply(run, a=mlp(), norm=nn.BatchNorm1d(16), b=mlp())


@scene(2, 8, 5, 5)
def interpolation_and_shrinkage() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = F.interpolate(m.a(x), scale_factor=2, mode="bilinear", align_corners=False)
        h = F.interpolate(F.hardshrink(h, 0.1), size=(7, 7), mode="nearest")
        return (
            (F.softshrink(h, 0.1) + F.pad(h, (1, 1, 0, 0), mode="circular")[..., 1:-1])
            .square()
            .mean()
        )

    return Apply(run, a=nn.Conv2d(8, 8, 3, padding=1))


@scene(64, 16)
def checks_that_nothing_reads() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        codes = F.one_hot(h.argmax(-1), 16).to(h.dtype)
        gram = h.T @ h + torch.eye(16)
        return (m.b(h + codes) @ torch.linalg.solve(gram, h[:16].T)).square().mean()

    return Apply(run, a=mlp(), b=mlp())


@scene(32, 16)
def orthogonal_weight() -> nn.Module:
    wrap = nn.utils.parametrizations.orthogonal
    return chain(wrap(nn.Linear(16, 16), orthogonal_map="cayley"), mlp())


@scene(64, 16)
def weight_made_by_a_hook() -> nn.Module:
    """As weight norm of old: the weight is a plain attribute, made anew before each call."""

    def run(m: Any, x: Tensor) -> Tensor:
        m.weight = m.a.weight * m.b.weight
        return F.gelu(F.linear(x, m.weight)).square().mean()

    return Apply(run, a=nn.Linear(16, 16, bias=False), b=nn.Linear(16, 16, bias=False))


@scene(8, 12, 16)
def permuted_batches() -> nn.Module:
    """Layers whose kernels lay a permuted batch out anew, forward or backward."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.norm(m.a(x).transpose(1, 2)).transpose(1, 2)
        h = m.last(m.drop(m.b(h).transpose(1, 2)).transpose(1, 2))
        return F.mse_loss(h.transpose(1, 2), x.transpose(1, 2)) + m.b(h).square().mean()

    return Apply(
        run,
        a=nn.Linear(16, 16),
        norm=nn.BatchNorm1d(16),
        b=nn.Linear(16, 16),
        drop=nn.Dropout(0.1),
        last=nn.LayerNorm(16),
    )


@scene(
    inputs=lambda: (
        torch.randn(12, 4, 16),
        torch.randint(1, 16, (4, 5)),
        torch.tensor([12, 9, 12, 10]),
        torch.tensor([5, 3, 2, 4]),
    )
)
def lengths_of_sequences() -> nn.Module:
    def run(m: Any, x: Tensor, words: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
        return F.ctc_loss(m.a(x).log_softmax(-1), words, steps, lengths)

    return Apply(run, a=nn.Sequential(mlp(), mlp()))


__all__ = ["SCENES"]
