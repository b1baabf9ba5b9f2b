"""A small decoder of repeated blocks, tied embeddings included, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, LENGTH = 64, 32, 16


class Block(nn.Module):
    """Attention and a gated MLP; called with a keyword, as decoders of transformers are."""

    def __init__(self, number: int, dropout: float) -> None:
        super().__init__()
        self.layer_idx = number
        self.norm = nn.LayerNorm(WIDTH)
        # no bias: the gradient of a key's is zero but for rounding, which AdamW would blow up
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2) * scale))
        return x + self.dropout(self.down(F.gelu(self.up(x))))


class Decoder(nn.Module):
    """Embedding, blocks, a norm and a head that may be tied to the embedding."""

    def __init__(
        self,
        layers: int = 3,
        *,
        dropout: float = 0.0,
        tied: bool = True,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, WIDTH)
        self.scale = nn.Buffer(torch.ones(WIDTH))
        self.h = nn.ModuleList(Block(i, dropout) for i in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.h:
            x = block(x, scale=self.scale)
        return F.cross_entropy(self.head(self.norm(x))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def decoder(layers: int = 3, **options: float) -> Decoder:
    torch.manual_seed(0)
    return Decoder(layers, **options).train()  # type: ignore[arg-type]


def batch(rank: int = 0, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1 + rank)
    return torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
