"""MPT as llm-foundry computes it under autocast, for comparison with what its authors measured.

No positions are added but learned ones, nothing has a dropout, attention is flash attention, and
norms run in the narrow type. Read in github.com/mosaicml/llm-foundry: ``llmfoundry/models/layers``
and ``scripts/train/yamls/pretrain``; its benchmarks take ``low_precision_layernorm``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """The sizes of an MPT."""

    layers: int
    width: int
    heads: int


VOCABULARY = 50368


class Norm(nn.LayerNorm):
    """A layer norm in the narrow type of autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        assert self.weight is not None
        narrow = [t.to(dtype) for t in (x, self.weight, self.bias)]
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(narrow[0], self.normalized_shape, narrow[1], narrow[2], self.eps)


class Block(nn.Module):
    """Attention of one joined product, then two layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norm_1, self.norm_2 = Norm(sizes.width), Norm(sizes.width)
        self.wqkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.up = nn.Linear(sizes.width, 4 * sizes.width)
        self.down = nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what they make."""
        rows, length, width = x.shape
        parts = self.wqkv(self.norm_1(x)).chunk(3, dim=2)
        q, k, v = (t.view(rows, length, self.heads, -1).transpose(1, 2) for t in parts)
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(made.transpose(1, 2).reshape(rows, length, width))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return out


class MPT(nn.Module):
    """A decoder with one table for embedding and head, and its loss."""

    def __init__(self, sizes: Sizes, length: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, sizes.width)
        self.wpe = nn.Embedding(length, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm_f = Norm(sizes.width)

    def forward(self, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss, and the logits that the loop still names."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm_f(x), self.wte.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return {"loss": loss, "logits": logits}


SIZES: dict[str, Sizes] = {
    "125m": Sizes(12, 768, 12),
    "350m": Sizes(24, 1024, 16),
    "760m": Sizes(24, 1536, 12),
    "1b": Sizes(24, 2048, 16),
    "3b": Sizes(32, 2560, 20),
    "7b": Sizes(32, 4096, 32),
    "13b": Sizes(40, 5120, 40),
    "30b": Sizes(48, 7168, 56),
    "70b": Sizes(80, 8192, 64),
}
"""By the name that tables use."""
