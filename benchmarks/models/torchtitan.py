"""Llama as torchtitan and torchtune compute it, for comparison with what their authors measured.

Felt in memory: norms in float32, rotations in float32 (complex numbers in torchtitan), grouped keys
and values written out, logits in float32. Read in github.com/pytorch/torchtitan (March and December
2024: ``models/llama/model.py``, ``train.py``) and github.com/meta-pytorch/torchtune
(``modules/rms_norm.py``, ``position_embeddings.py``, ``attention.py``, ``loss/``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """The sizes of a Llama; ``tied`` has one table for embedding and head."""

    layers: int
    width: int
    heads: int
    groups: int
    vocabulary: int
    inner: int
    tied: bool = False


class Norm(nn.Module):
    """An RMS norm in float32 whose result is cast before it is scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return normed.type_as(x) * self.weight


def turned(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of features, in float32, as complex numbers are multiplied.

    Args:
        x: features, the last dimension whole.
        table: cosines and sines, shaped (length, pairs, 2).
    """
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    cos, sin = (table[None, :, None, :, i] for i in (0, 1))
    real = pairs[..., 0] * cos - pairs[..., 1] * sin
    imaginary = pairs[..., 1] * cos + pairs[..., 0] * sin
    return torch.stack((real, imaginary), -1).flatten(3).type_as(x)


class Attention(nn.Module):
    """Causal attention; each group of keys and values written out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.groups = sizes.heads, sizes.groups
        self.head = sizes.width // sizes.heads
        self.wq = nn.Linear(sizes.width, sizes.width, bias=False)
        self.wk = nn.Linear(sizes.width, sizes.groups * self.head, bias=False)
        self.wv = nn.Linear(sizes.width, sizes.groups * self.head, bias=False)
        self.wo = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Attend."""
        rows, length, _ = x.shape
        q, k, v = (w(x).view(rows, length, -1, self.head) for w in (self.wq, self.wk, self.wv))
        q, k = turned(q, table), turned(k, table)
        if self.groups != self.heads:
            k, v = map(self._each, (k, v))
        made = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.wo(made.transpose(1, 2).contiguous().view(rows, length, -1))
        return out

    def _each(self, x: Tensor) -> Tensor:
        rows, length, groups, head = x.shape
        each = self.heads // groups
        wide = x[:, :, :, None, :].expand(rows, length, groups, each, head)
        return wide.reshape(rows, length, groups * each, head)


class Block(nn.Module):
    """Attention, then gated layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(sizes), Norm(sizes.width)
        self.ffn_norm = Norm(sizes.width)
        self.w1 = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.w3 = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.w2 = nn.Linear(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Add what they make."""
        h = x + self.attention(self.attention_norm(x), table)
        normed = self.ffn_norm(h)
        out: Tensor = h + self.w2(F.silu(self.w1(normed)) * self.w3(normed))
        return out


class Llama(nn.Module):
    """A decoder and its loss; logits are made float32, whole or in chunks.

    Args:
        sizes: of the model.
        length: tokens of a sequence.
        chunks: how many parts of the logits are made float32 one by one.
        names_logits: the loop still names them while it goes backward; torchtune's deletes them.
    """

    table: Tensor

    def __init__(
        self, sizes: Sizes, length: int, *, chunks: int = 1, names_logits: bool = True
    ) -> None:
        super().__init__()
        self.chunks, self.names_logits = chunks, names_logits
        self.embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = Norm(sizes.width)
        self.output = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        if sizes.tied:
            self.output.weight = self.embeddings.weight
        pairs = sizes.width // sizes.heads // 2
        table = torch.empty(length, pairs, 2, dtype=torch.float32)
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss, and the logits where they are still named."""
        h = self.embeddings(ids)
        for layer in self.layers:
            h = layer(h, self.table)
        h = self.norm(h)
        if self.chunks == 1:
            logits = self.output(h).float()
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1))
            return {"loss": loss} | ({"logits": logits} if self.names_logits else {})
        parts = [self.output(part) for part in h.chunk(self.chunks, dim=1)]
        wanted = targets.chunk(self.chunks, dim=1)
        sums = [
            F.cross_entropy(a.float().flatten(0, 1), b.reshape(-1), reduction="sum")
            for a, b in zip(parts, wanted, strict=True)
        ]
        return {"loss": torch.stack(sums).sum() / targets.numel()}


SIZES: dict[str, Sizes] = {
    "Llama-2-7B": Sizes(32, 4096, 32, 32, 32000, 11008),
    "Llama-2-13B": Sizes(40, 5120, 40, 40, 32000, 13824),
    "Llama-2-34B": Sizes(48, 8192, 64, 8, 32000, 22016),
    "Llama-2-70B": Sizes(80, 8192, 64, 8, 32000, 28672),
    "Llama-3-8B": Sizes(32, 4096, 32, 8, 128256, 14336),
    "Llama-3.1-8B": Sizes(32, 4096, 32, 8, 128256, 14336),
    "Llama-3-70B": Sizes(80, 8192, 64, 8, 128256, 28672),
    "Llama-3.1-70B": Sizes(80, 8192, 64, 8, 128256, 28672),
    "Llama-3.2-1B": Sizes(16, 2048, 32, 8, 128256, 8192, tied=True),
    "Llama-3.2-3B": Sizes(28, 3072, 24, 8, 128256, 8192, tied=True),
}
"""By the name that tables use."""
