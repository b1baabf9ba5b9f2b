"""A loss in chunks: logits that never exist as a whole: ``python examples/loss_in_chunks.py``.

A small language model with a large vocabulary: what a step holds is nearly all logits. In chunks of
the tokens it holds a fraction; the gradients are the same but for the last bits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner

WORDS = 16_000


class LanguageModel(nn.Module):
    """Embedding, a layer, and a head of the embedding's weights; returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        """Predict each token from those before it."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.layer(self.embedding(ids), src_mask=mask, is_causal=True)
        logits = hidden @ self.embedding.weight.t()
        return F.cross_entropy(logits[:, :-1].reshape(-1, WORDS), ids[:, 1:].reshape(-1))


def main() -> None:
    """Plan, run a step with and without, and compare."""
    torch.manual_seed(0)
    model, ids = LanguageModel(), torch.randint(0, WORDS, (4, 128))
    plain = planner.fit(model, "1GB", inputs=ids)
    budget = plain.plain_peak_bytes // 2
    try:
        planner.fit(model, budget, inputs=ids)
    except planner.InfeasibleBudget as error:
        print(str(error).partition(" Or ")[2])
    plan = planner.fit(model, budget, inputs=ids, loss_chunks="auto")
    print(f"{plan.rewrite}: {plan.peak_bytes / 1e6:.0f} MB, not {plain.peak_bytes / 1e6:.0f} MB")

    model(ids).backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    plan.apply(model)(ids).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    close = all(
        (a - b).norm() <= 1e-5 * b.norm() for a, b in zip(found, wanted, strict=True) if b.any()
    )
    print(f"gradients agree to 1e-5: {close}")


if __name__ == "__main__":
    main()
