"""Recurrent language model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.example import Example, seeded, tokens


class LanguageLSTM(nn.Module):
    """Embedding, stacked LSTM with dropout, projection tied to the embedding."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, dropout=0.2, batch_first=True)
        self.project = nn.Linear(width, vocabulary)
        self.project.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean cross entropy of each next token."""
        hidden, _ = self.lstm(self.embedding(ids))
        logits = self.project(hidden)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def lstm() -> Example:
    """Build an LSTM language model."""
    model = seeded(lambda: LanguageLSTM(4096, 256, 3))
    return model, {"ids": tokens(32, 96, 4096)}
