"""Decoders as LitGPT computes them, for comparison with what its authors measured.

What differs from other code of the same models and is felt in memory: products of queries, keys and
values as one; norms in float32 whose result is cast before it is scaled; rotary tables in float32
after the length was set anew, so that rotations are, too; grouped keys and values written out;
adapters on parts of the one product, padded with zeros; logits in float32, the loss in chunks. Read
in github.com/Lightning-AI/litgpt: ``litgpt/model.py``, ``lora.py`` and ``finetune/`` of March and
April 2024, ``lit_gpt/`` of October 2023 for ``narrow_norms``; Fabric's ``HalfPrecision`` casts what
a model returns to the default dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 128


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, and which of the library's variants it is.

    ``gated`` is Llama's MLP with RMS norms, otherwise GPT-NeoX's with layer norms and biases.
    ``parallel`` adds attention and MLP of the same input, ``one_norm`` with the same norm.
    ``rotated`` is how much of a head is rotated. ``narrow_norms`` are RMS norms that stay in the
    dtype of the model.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    inner: int
    groups: int | None = None
    gated: bool = True
    parallel: bool = False
    one_norm: bool = False
    biases: bool = False
    rotated: float = 1.0
    head: int | None = None
    narrow_norms: bool = False

    @property
    def head_width(self) -> int:
        """The width of a head."""
        return self.head or self.width // self.heads

    @property
    def parts(self) -> tuple[int, int, int]:
        """How wide queries, keys and values are."""
        keys = self.head_width * (self.groups or self.heads)
        return self.head_width * self.heads, keys, keys


ON_ATTENTION = frozenset({"query", "value"})
EVERYWHERE = ON_ATTENTION | {"key", "projection", "mlp", "head"}


@dataclass(frozen=True)
class Adapters:
    """Narrow layers beside frozen ones: their rank, and of which products they are a part."""

    rank: int
    on: frozenset[str]
    dropout: float = 0.05


class Norm(nn.Module):
    """An RMS norm."""

    def __init__(self, width: int, *, narrow: bool) -> None:
        super().__init__()
        self.weight, self.narrow = nn.Parameter(torch.ones(width)), narrow

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square."""
        wide = x if self.narrow else x.float()
        scale = torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + 1e-5)
        return (wide * scale).to(x.dtype) * self.weight


class Product(nn.Module):
    """A linear layer; with adapters, frozen, and a narrow path beside it."""

    def __init__(self, ins: int, outs: int, adapters: Adapters | None, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(ins, outs, bias=bias)
        self.adapters = adapters
        if adapters:
            self.linear.requires_grad_(requires_grad=False)
            self.dropout = nn.Dropout(adapters.dropout)
            self.down = nn.Parameter(torch.empty(adapters.rank, ins))
            self.up = nn.Parameter(torch.empty(outs, adapters.rank))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and add what the narrow path makes."""
        whole: Tensor = self.linear(x)
        if not self.adapters:
            return whole
        narrow: Tensor = self.dropout(x) @ self.down.t() @ self.up.t()
        return whole + narrow * 0.5


class JoinedProduct(nn.Module):
    """Queries, keys and values in one product; adapters on some of them, zeros for the others."""

    places: Tensor

    def __init__(self, shape: Shape, adapters: Adapters | None) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.width, sum(shape.parts), bias=shape.biases)
        chosen = [name in adapters.on for name in ("query", "key", "value")] if adapters else []
        self.sizes = [size for size, on in zip(shape.parts, chosen, strict=False) if on]
        self.whole, self.grouped = all(chosen), shape.groups not in (None, shape.heads)
        if adapters and self.sizes:
            self.dropout = nn.Dropout(adapters.dropout)
            self.down = nn.Parameter(torch.empty(adapters.rank * len(self.sizes), shape.width))
            self.up = nn.Parameter(torch.empty(sum(self.sizes), adapters.rank))
            places = torch.arange(sum(self.sizes))
            self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and add what the narrow paths make."""
        whole: Tensor = self.linear(x)
        if not self.sizes:
            return whole
        narrow = F.linear(self.dropout(x), self.down).transpose(-2, -1)
        made = self._wide(narrow, self.up.unsqueeze(-1)).transpose(-2, -1)
        return whole + (made if self.whole else self._padded(made, whole.shape[-1])) * 0.5

    def _wide(self, narrow: Tensor, up: Tensor) -> Tensor:
        if not self.grouped:
            return F.conv1d(narrow, up, groups=len(self.sizes))
        parts = zip(narrow.chunk(len(self.sizes), dim=1), torch.split(up, self.sizes), strict=True)
        return torch.cat([F.conv1d(a, b) for a, b in parts], dim=1)

    def _padded(self, made: Tensor, width: int) -> Tensor:
        turned = made.transpose(0, 1)
        zeros = turned.new_zeros((*turned.shape[:-1], width)).view(-1, width)
        filled = zeros.index_copy(1, self.places, turned.reshape(-1, sum(self.sizes)))
        return filled.view((*turned.shape[:-1], width)).transpose(0, 1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of features, half a head apart, by an angle that the position gives."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return ((x * cos) + (turned * sin)).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotated queries and keys, each group of them written out."""

    def __init__(self, shape: Shape, adapters: Adapters | None) -> None:
        super().__init__()
        self.shape = shape
        self.qkv = JoinedProduct(shape, adapters)
        self.proj = Product(
            shape.parts[0], shape.width, _on("projection", adapters), bias=shape.biases
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend."""
        rows, length, _ = x.shape
        shape, width = self.shape, self.shape.head_width
        groups = shape.groups or shape.heads
        each = shape.heads // groups
        joined = self.qkv(x).view(rows, length, groups, each + 2, width).permute(0, 2, 3, 1, 4)
        q, k, v = joined.split((each, 1, 1), dim=2)
        if groups != shape.heads:
            k, v = (t.expand(rows, groups, each, length, width) for t in (k, v))
        q, k, v = (t.reshape(rows, -1, length, width) for t in (q, k, v))
        turned = int(shape.rotated * width)
        q, k = (
            torch.cat((rotated(t[..., :turned], cos, sin), t[..., turned:]), dim=-1) for t in (q, k)
        )
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=width**-0.5)
        out: Tensor = self.proj(made.transpose(1, 2).reshape(rows, length, -1))
        return out


class Mlp(nn.Module):
    """Llama's gated layers, or GPT-NeoX's two."""

    def __init__(self, shape: Shape, adapters: Adapters | None) -> None:
        super().__init__()
        inside = _on("mlp", adapters)
        self.gated = shape.gated
        self.fc_1 = Product(shape.width, shape.inner, inside, bias=shape.biases)
        if shape.gated:
            self.fc_2 = Product(shape.width, shape.inner, inside, bias=shape.biases)
        self.proj = Product(shape.inner, shape.width, inside, bias=shape.biases)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, bend, narrow."""
        first = self.fc_1(x)
        made: Tensor = self.proj(F.silu(first) * self.fc_2(x) if self.gated else F.gelu(first))
        return made


class Block(nn.Module):
    """Attention and MLP, one after the other or side by side."""

    def __init__(self, shape: Shape, adapters: Adapters | None) -> None:
        super().__init__()
        self.shape = shape
        self.norm_1, self.attn = _norm(shape), Attention(shape, adapters)
        self.norm_2 = None if shape.one_norm else _norm(shape)
        self.mlp = Mlp(shape, adapters)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add what attention and MLP make."""
        normed = self.norm_1(x)
        attended = self.attn(normed, cos, sin)
        if self.shape.parallel:
            other = normed if self.norm_2 is None else self.norm_2(x)
            return self.mlp(other) + attended + x  # type: ignore[no-any-return]
        assert self.norm_2 is not None
        x = attended + x
        made: Tensor = self.mlp(self.norm_2(x)) + x
        return made


class LitGPT(nn.Module):
    """A decoder and its loss, as the library's loops compute it.

    Fabric hands the logits on in float32. Fine-tuning shifts them, takes the loss in chunks (of the
    head, too, while adapters are trained) and still names the logits while backward runs.

    Args:
        shape: sizes and variants.
        length: tokens of a sequence.
        adapters: what alone is trained; ``None`` trains everything.
        pretrains: take the whole loss at once, of targets that are shifted already.
    """

    def __init__(
        self,
        shape: Shape,
        length: int,
        adapters: Adapters | None = None,
        *,
        pretrains: bool = False,
    ) -> None:
        super().__init__()
        self.pretrains, self.adapters = pretrains, adapters
        self.lm_head = Product(
            shape.width, shape.vocabulary, _on("head", adapters), bias=shape.biases
        )
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.h = nn.ModuleList(Block(shape, adapters) for _ in range(shape.layers))
        self.ln_f = _norm(shape)
        # a pretraining loop never sets the length anew: its tables are cast with the model
        dtype = None if pretrains else torch.float32
        for name in ("cos", "sin"):
            table = torch.empty(length, int(shape.rotated * shape.head_width), dtype=dtype)
            self.register_buffer(name, table, persistent=False)
        if adapters:
            trained = {"down", "up"}
            for path, parameter in self.named_parameters():
                parameter.requires_grad = path.rpartition(".")[2] in trained

    def forward(self, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss, and what the loop still names while it goes backward."""
        x = self.wte(ids)
        for block in self.h:
            x = block(x, self.cos, self.sin)
        x = self.ln_f(x)
        if self.pretrains:
            logits = self.lm_head(x).float()
            return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1))}
        parts = torch.split(x, CHUNK, dim=1) if self.adapters else (x,)
        made = [self.lm_head(part).float() for part in parts]
        last = made[-1][:, :-1]
        wanted = targets[:, 1:]
        if self.adapters:
            chunks = [part.reshape(-1, part.shape[-1]) for part in (*made[:-1], last)]
            answers = [part.reshape(-1) for part in torch.split(wanted, CHUNK, dim=1)]
        else:
            chunks = list(torch.split(last.reshape(-1, last.shape[-1]), CHUNK))
            answers = list(torch.split(wanted.reshape(-1), CHUNK))
        losses = [
            F.cross_entropy(a, b, reduction="none") for a, b in zip(chunks, answers, strict=True)
        ]
        loss = torch.cat(losses).sum() / (targets != -100).sum()
        return {"loss": loss} | {f"logits {i}": part for i, part in enumerate(made)}


def _on(product: str, adapters: Adapters | None) -> Adapters | None:
    return adapters if adapters and product in adapters.on else None


def _norm(shape: Shape) -> nn.Module:
    if shape.gated:
        return Norm(shape.width, narrow=shape.narrow_norms)
    return nn.LayerNorm(shape.width)


def _neox(layers: int, width: int, heads: int, vocabulary: int, **more: object) -> Shape:
    shape = Shape(
        layers, width, heads, vocabulary, 4 * width, gated=False, parallel=True, biases=True
    )
    return replace(shape, **more)  # type: ignore[arg-type]


SHAPES: dict[str, Shape] = {
    "TinyLlama": Shape(22, 2048, 32, 32000, 5632, groups=4),
    "Llama-2-7B": Shape(32, 4096, 32, 32000, 11008),
    "Llama-2-13B": Shape(40, 5120, 40, 32000, 13824),
    "Llama-3-8B": Shape(32, 4096, 32, 128256, 14336, groups=8),
    "Llama-3.1-8B": Shape(32, 4096, 32, 128256, 14336, groups=8),
    "Llama-3.2-1B": Shape(16, 2048, 32, 128256, 8192, groups=8),
    "Llama-3.2-3B": Shape(28, 3072, 24, 128256, 8192, groups=8),
    "Mistral-7B": Shape(32, 4096, 32, 32000, 14336, groups=8),
    "Phi-3-mini": Shape(32, 3072, 32, 32064, 8192),
    "Gemma-2B": Shape(18, 2048, 8, 256000, 16384, groups=1, head=256),
    "Falcon-7B": _neox(32, 4544, 71, 65024, groups=1, one_norm=True, biases=False),
    "phi-1.5": _neox(24, 2048, 32, 51200, one_norm=True, rotated=0.5),
    "phi-2": _neox(32, 2560, 32, 51200, one_norm=True, rotated=0.4),
    "StableLM-Alpha-3B": _neox(16, 4096, 32, 50688, rotated=0.25),
    "StableLM-Alpha-7B": _neox(16, 6144, 48, 50432, rotated=0.25),
}
"""By the name that tables use; sizes of ``litgpt/config.py``, padded vocabularies included."""
