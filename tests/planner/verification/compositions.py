"""Small models put together from common functions, to see what autograd holds of each."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128


def _scaled_scores(x: Tensor) -> Tensor:
    heads = x.view(-1, 64, 8, 16).transpose(1, 2)
    scores = (heads @ heads.mT).div_(4.0).masked_fill_(torch.ones(64, 64).triu(1) > 0, -1e9)
    return (scores.softmax(-1) @ heads).transpose(1, 2).reshape(-1, WIDTH)


def _in_groups(x: Tensor, group: Tensor) -> Tensor:
    return torch.zeros(9, WIDTH).index_add(0, group, x)[group]


def _halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat([left * right.sigmoid(), right], -1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x - x.amax(-1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(*(x.view(1, 8, -1, WIDTH),) * 3).reshape(
        -1, WIDTH
    ),
    "bce": lambda x: x + F.binary_cross_entropy_with_logits(x, torch.zeros_like(x)),
    "clamp": lambda x: x.clamp(-2, 2),
    "cosine": lambda x: x * F.cosine_similarity(x, x.roll(1, 0), dim=-1)[:, None],
    "cross_entropy": lambda x: x + F.cross_entropy(x, torch.zeros(len(x), dtype=torch.long)),
    "cummax": lambda x: x.cummax(-1).values,
    "cumprod": lambda x: (x / 100 + 1).cumprod(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "diff": lambda x: F.pad(x.diff(dim=-1), (0, 1)),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x) @ x / 1000,
    "elu": F.elu,
    "exp": lambda x: torch.exp(-x.square()),
    "flip": lambda x: x * x.flip(-1),
    "gather": lambda x: x.gather(-1, torch.zeros(x.shape, dtype=torch.long)),
    "gelu": F.gelu,
    "glu": lambda x: F.glu(torch.cat([x, x], -1)),
    "halves": _halves,
    "index": lambda x: x[torch.arange(len(x) - 1, -1, -1)],
    "index_add": lambda x: _in_groups(x, torch.arange(len(x)) % 9),
    "layer_norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "lerp": lambda x: x.lerp(x.sin(), x.cos()),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "logaddexp": lambda x: torch.logaddexp(x, -x),
    "logsumexp": lambda x: x + torch.logsumexp(x, -1, keepdim=True),
    "masked": lambda x: x.masked_fill(x > 1, 0.0),
    "max": lambda x: x - x.max(-1, keepdim=True).values,
    "maximum": lambda x: torch.maximum(x, x.sin()),
    "norm": lambda x: x / (1 + x.norm(dim=-1, keepdim=True)),
    "power": lambda x: x**3,
    "prod": lambda x: x + x.prod(-1, keepdim=True),
    "rms_norm": lambda x: F.rms_norm(x, (WIDTH,)),
    "scores": _scaled_scores,
    "softmax": lambda x: F.softmax(x, -1) * x,
    "sort": lambda x: x.sort(-1).values,
    "sqrt": lambda x: (x.abs() + 1).sqrt(),
    "std": lambda x: x / (x.std(-1, keepdim=True) + 1e-3),
    "topk": lambda x: x * x.topk(32, -1).values.mean(-1, keepdim=True),
    "tril": lambda x: x + x.tril(),
    "var": lambda x: x * x.var(-1, keepdim=True),
    "where": lambda x: torch.where(x > 0, x, x / 10),
}


class Composition(nn.Module):
    """Linear layers, and after each a function."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in names)

    def forward(self, x: Tensor) -> Tensor:
        for layer, name in zip(self.layers, self.names, strict=True):
            x = FUNCTIONS[name](layer(x))
        return x.square().mean()


def drawn(count: int, seed: int) -> list[list[str]]:
    """Draw compositions of 3 to 6 functions."""
    chance = random.Random(seed)
    return [chance.choices(sorted(FUNCTIONS), k=chance.randint(3, 6)) for _ in range(count)]
