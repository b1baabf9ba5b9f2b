"""What tests of the compiled engine's loss in chunks share: a language model of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


class Speaker(nn.Module):
    """An embedding, a layer, a head and a loss, which alone is returned."""

    def __init__(self, loss: Loss, words: int = 61, width: int = 8, **said: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(words, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=said.get("bias", False))
        self.drop = nn.Dropout(said.get("drop", 0.0))
        self.loss = loss
        if said.get("tied"):
            self.head.weight = self.embed.weight
        if said.get("frozen"):
            self.inner.requires_grad_(requires_grad=False)
            self.embed.requires_grad_(requires_grad=False)

    def logits(self, ids: Tensor) -> Tensor:
        """Return what the loss is taken of."""
        logits: Tensor = self.head(self.drop(self.inner(self.embed(ids)).tanh()))
        return logits

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        """Return the loss."""
        return self.loss(self.logits(ids), labels)


class Returning(Speaker):
    """Returns its logits beside the loss."""

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        """Return both."""
        logits = self.logits(ids)
        return self.loss(logits, labels), logits


def usual(logits: Tensor, labels: Tensor, **said: Any) -> Tensor:
    """Take the cross entropy in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), **said)


def batch(words: int = 61, rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Draw tokens and labels, of which some are ignored."""
    drawn = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(0, words, (2, rows, length), generator=drawn)
    labels[0, :2] = labels[-1, 3] = -100
    return ids, labels


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a model, which it returns by name, and its gradients."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest relative difference of tensors."""
    pairs = zip(one, other, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
