"""Train GPT-2 in half the memory it needs: ``make demo``, or ``python -m benchmarks.demo``.

The model is the one of transformers, with random weights, and reads the bytes of this project's
licence. It is trained twice from the same seed, plain and planned: every loss must agree in every
bit. Then both run again, each in a process of its own, to measure what they really hold.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import planner

STEPS, BATCH, LENGTH = 10, 4, 512
TEXT = Path(__file__).parents[1] / "LICENSE"
SHARE = 0.48  # of what plain training needs


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the model and one batch."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_layer=12,
        n_embd=256,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config).train(), next(batches())


def batches() -> Iterator[dict[str, Tensor]]:
    """Draw pieces of the text, the same ones every time."""
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    draw = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=draw)
        ids = torch.stack([text[s : s + LENGTH] for s in starts.tolist()])
        yield {"input_ids": ids, "labels": ids}


def train(model: nn.Module, label: str) -> list[float]:
    """Train as anyone would and return every loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)  # the dropout masks
    losses = []
    data = zip(range(STEPS), batches(), strict=False)
    for _, batch in track(data, label, total=STEPS, console=Console(stderr=True)):
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Plan, train, measure, and exit with 1 unless every promise is kept."""
    console = Console()
    model, batch = build()
    least_effort = planner.fit(model, "1TB", inputs=batch)
    budget = int(SHARE * least_effort.peak_bytes)
    plan = planner.fit(model, budget, inputs=batch)
    console.print(str(plan), highlight=False)

    plain = train(build()[0], "plain training  ")
    planned = train(plan.apply(build()[0]), "planned training")
    table = Table("step", "plain loss", "planned loss", "bit for bit")
    for step, (a, b) in enumerate(zip(plain, planned, strict=True), 1):
        table.add_row(str(step), f"{a:.7f}", f"{b:.7f}", "equal" if a == b else "DIFFERENT")
    console.print(table)

    found = planner.verify(build, plan)
    memory = Table("training", "predicted peak, MB", "measured peak, MB", "step, s")
    for name, predicted, run in (
        ("plain", plan.eager_peak_bytes or plan.plain_peak_bytes, found.plain),
        ("planned", plan.peak_bytes, found.planned),
    ):
        measured = f"{run.peak_bytes / 1e6:,.1f}"
        memory.add_row(name, f"{predicted / 1e6:,.1f}", measured, f"{run.seconds:.2f}")
    memory.add_row("budget", "", f"{budget / 1e6:,.1f}", "")
    console.print(memory)
    halved = found.plain.peak_bytes >= 2 * budget
    kept = plain == planned and found.identical and found.fits and halved
    console.print(str(found), highlight=False)
    console.print("every promise kept" if kept else "A PROMISE IS BROKEN")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
