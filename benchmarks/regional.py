"""Blocks compiled by themselves, as often as a model has them: ``python -m benchmarks.regional``.

Six blocks of GPT-2 and of BERT, ``block.compile()`` with Inductor's default and with
``planner.backend(budget, calls=6)`` at three budgets: what do they hold together, what was
predicted, what does a step cost, how long does it take to build, are the gradients the default's.
Seconds are the processor's, on one thread: of building with an empty cache each time, and of the
quickest of 9 steps.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import planner
from benchmarks.compiled import Budgeted, Measured, difference, processor_seconds, warm_up
from benchmarks.record import record, show
from benchmarks.stubs import stubs
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.solvers import Limits

BLOCKS, WIDTH, HEADS, ROWS, LENGTH = 6, 128, 4, 4, 128
SHARES = (0.9, 0.7, 0.5)
"""Of what moves by default."""


@dataclass(frozen=True)
class Row(Budgeted):
    """Blocks; ``compiled`` is how many plans were made."""

    build_ratio: float
    gradient_difference: float
    compiled: int


def gpt2() -> nn.ModuleList:
    """Build blocks of GPT-2 with dropout."""
    config = hf.GPT2Config(n_layer=BLOCKS, n_embd=WIDTH, n_head=HEADS, attn_pdrop=0.0, vocab_size=8)
    blocks: nn.ModuleList = hf.GPT2Model(config).train().h
    return blocks


def bert() -> nn.ModuleList:
    """Build layers of BERT with dropout."""
    config = hf.BertConfig(
        num_hidden_layers=BLOCKS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        attention_probs_dropout_prob=0.0,
        vocab_size=8,
    )
    blocks: nn.ModuleList = hf.BertModel(config).train().encoder.layer
    return blocks


MODELS = {"gpt2": gpt2, "bert": bert}


def measured(make: Callable[[], nn.ModuleList], backend: object, *, real: bool) -> Measured:
    """Train blocks for a few steps, each compiled by a backend."""
    torch.manual_seed(0)
    blocks, x = make(), torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    torch._dynamo.reset()
    for block in blocks:
        block.compile(backend=backend)

    def step() -> None:
        blocks.zero_grad(set_to_none=True)
        x.grad, hidden = None, x
        for block in blocks:
            made = block(hidden)
            hidden = made if isinstance(made, Tensor) else made[0]
        hidden.square().sum().backward()  # type: ignore[no-untyped-call]

    with fresh_cache() if real else nullcontext():
        start = processor_seconds()
        step()
        spent = processor_seconds() - start
        torch.manual_seed(3)
        step()
        found = {n: p.grad.clone() for n, p in blocks.named_parameters() if p.grad is not None}
        blocks.zero_grad(set_to_none=True)
        x.grad = None
        moving = measure_peak(step).peak_bytes
        seconds = min(_seconds_of(step) for _ in range(9)) if real else math.nan
    fixed = x.nbytes + sum(t.nbytes for t in (*blocks.parameters(), *blocks.buffers()))
    return Measured(fixed + moving, moving, seconds, spent, found)


def _seconds_of(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def rows_of(name: str, *, real: bool) -> Iterator[Row]:
    """Measure one kind of block by default and under three budgets."""
    make = MODELS[name]
    usual = measured(make, "inductor", real=real)
    yield _row(name, "inductor", usual, usual, (), real=real)
    for share in SHARES:
        budget = int(usual.peak_bytes - (1 - share) * usual.moving_bytes)
        said = {"optimizer": None, "limits": Limits(seconds=20), "progress": "off"}
        backend = planner.backend(budget, calls=BLOCKS, **said)  # type: ignore[arg-type]
        found = measured(make, backend, real=real)
        yield _row(name, "ours", found, usual, backend.plans, real=real)


def _row(
    name: str,
    runs: str,
    found: Measured,
    usual: Measured,
    plans: tuple[planner.Plan, ...],
    *,
    real: bool,
) -> Row:
    plan = plans[-1] if plans else None
    fixed = found.peak_bytes - found.moving_bytes
    gradients: Mapping[str, Tensor] = found.gradients
    return Row(
        model=name,
        runs=runs,
        budget_bytes=plan.budget_bytes if plan else 0,
        predicted_bytes=plan.peak_bytes if plan else 0,
        measured_bytes=found.peak_bytes,
        moving_bytes=found.moving_bytes,
        predicted_ratio=(plan.peak_bytes - fixed) / found.moving_bytes if plan else math.nan,
        kept=plan is None or found.peak_bytes <= plan.budget_bytes,
        overhead_fraction=plan.overhead if plan else math.nan,
        gap_fraction=plan.gap if plan else math.nan,
        time_ratio=found.seconds / usual.seconds,
        build_ratio=found.compile_seconds / usual.compile_seconds if real else math.nan,
        gradient_difference=difference(gradients, usual.gradients) if real else math.nan,
        compiled=len(plans),
    )


def main() -> None:
    """Measure the blocks named, or all; exit with 1 if a budget is not kept."""
    said = [name for name in sys.argv[1:] if name in MODELS]
    real = "--stubs" not in sys.argv
    rows: list[Row] = []
    torch.set_num_threads(1)
    with nullcontext() if real else stubs():
        warm_up()
        for name in said or MODELS:
            for row in rows_of(name, real=real):
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                path = record("regional" if real else "regional_stubs", rows)
    show("regional", rows)
    print(path)
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    main()
