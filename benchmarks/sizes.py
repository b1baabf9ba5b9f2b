"""Thirty sizes through one plan, as dynamic padding makes them: ``python -m benchmarks.sizes``.

For each model: how often the step was traced and how long that took, whether every gradient equals
eager mode's in every bit, whether the memory stays within the budget, and what a step costs beside
plain eager mode when sizes change at every step and when they do not.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor, nn

import planner
from benchmarks.record import record, show
from planner.graphs.capture.recapture import recapture
from planner.graphs.torch_api.allocation_records import measure_peak

Call = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model by its scale, its largest call, and how a call of other sizes is cut out of it."""

    make: Callable[[int], nn.Module]
    largest: Callable[[], Call]
    dynamic: Any
    cut: Callable[[Call, int, int], Call]


@dataclass(frozen=True)
class Row:
    """What became of one model; ``changing`` and ``fixed`` are steps beside plain ones."""

    model: str
    sizes: int
    traced: int
    tracing_seconds: float
    equal: bool
    within_budget: bool
    grown_bytes: int
    changing: float
    fixed: float


def gpt2(scale: int) -> nn.Module:
    """Return GPT-2 with its dropouts."""
    config = transformers.GPT2Config(
        n_layer=scale, n_embd=32 * scale, n_head=2, vocab_size=64, n_positions=40, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    made: nn.Module = transformers.GPT2LMHeadModel(config)
    return made


def t5(scale: int) -> nn.Module:
    """Return T5, encoder and decoder."""
    config = transformers.T5Config(
        vocab_size=64, d_model=16 * scale, d_kv=8 * scale, d_ff=32 * scale, num_layers=scale,
        num_heads=2, use_cache=False, decoder_start_token_id=0,
    )  # fmt: skip
    made: nn.Module = transformers.T5ForConditionalGeneration(config)
    return made


class Pictures(nn.Module):
    """Convolutions and batch norm in train mode, of pictures of any size."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        widths = ((3, 8 * scale), *[(8 * scale, 8 * scale)] * scale, (8 * scale, 16))
        blocks = ((nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths)
        self.body = nn.Sequential(*(layer for block in blocks for layer in block))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        head: Tensor = self.head(self.body(x).mean((2, 3)))
        return head.square().mean()


class Sequences(nn.Module):
    """An LSTM of two layers and two directions with a dropout between them."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        width = 16 * scale
        self.cells = nn.LSTM(8, width, 2, batch_first=True, dropout=0.1, bidirectional=True)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        head: Tensor = self.head(self.cells(x)[0])
        return head.square().mean()


def tokens(rows: int, length: int) -> Call:
    """Return a batch of words and what is to come of them."""
    ids = torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


def _cut(call: Call, rows: int, length: int) -> Call:
    return {name: x[:rows, :length].contiguous() for name, x in call.items()}


BOTH = {"input_ids": (0, 1), "labels": (0, 1)}
CASES = {
    "gpt2": Case(gpt2, lambda: tokens(6, 32), BOTH, _cut),
    "t5": Case(t5, lambda: tokens(6, 32), BOTH, _cut),
    "cnn": Case(
        Pictures,
        lambda: {"x": torch.randn(6, 3, 32, 32)},
        {"x": (0, 2, 3)},
        lambda c, n, size: {"x": c["x"][:n, :, :size, :size].contiguous()},
    ),
    "lstm": Case(
        Sequences,
        lambda: {"x": torch.randn(6, 32, 8)},
        {"x": (0, 1)},
        lambda c, n, size: {"x": c["x"][:n, :size].contiguous()},
    ),
}


def sizes() -> Iterator[tuple[int, int]]:
    """Yield thirty of them, up and down, none of size 1."""
    for k in range(30):
        yield 2 + (3 * k) % 5, 32 - (7 * k) % 29


def step(model: nn.Module, call: Call, buffers: list[Tensor]) -> list[Tensor | None]:
    """Return the loss, the gradients and the buffers of one step.

    Args:
        model: plain or planned.
        call: what it is called with.
        buffers: what its buffers are before.
    """
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    torch.manual_seed(2)
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, call)
    torch.autograd.backward(loss)
    made = [loss, *(p.grad for p in model.parameters()), *model.buffers()]
    return [None if x is None else x.detach().clone() for x in made]


def loss_of(model: nn.Module, call: Call) -> Tensor:
    """Return the loss of a call."""
    found = model(**call)
    loss: Tensor = found if isinstance(found, Tensor) else found.loss
    return loss


def row_of(name: str, scale: int = 4, rounds: int = 5) -> Row:
    """Run one case.

    Args:
        name: of ``CASES``.
        scale: of the model.
        rounds: times through the sizes once all of them are traced.
    """
    torch.manual_seed(0)
    case = CASES[name]
    model, largest = case.make(scale).train(), case.largest()
    buffers = copy.deepcopy(list(model.buffers()))
    said: Any = {"inputs": largest, "optimizer": None, "dynamic": case.dynamic}
    plan = planner.fit(model, "1GB", method="recompute_all", **said)
    planned = plan.apply(model)
    calls = [case.cut(largest, *size) for size in sizes()]
    traced: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        made = recapture(*args, **kwargs)
        traced.append(time.perf_counter() - began)
        return made

    with patch("planner.running.engines.op_by_op.recapture", timed):
        pairs = [(step(planned, c, buffers), step(model, c, buffers)) for c in calls]
    equal = all(_same(a, b) for pair in pairs for a, b in zip(*pair, strict=True))
    least = min(_room_left(planned, model, c, plan.peak_bytes) for c in calls[:6])
    grown = measure_peak(lambda: _round(planned, calls)).left_bytes
    changing = _ratio(planned, model, calls, rounds)
    fixed = statistics.median(_ratio(planned, model, [c] * 5, rounds) for c in calls[:6])
    return Row(
        name, len({tuple(x.shape for x in c.values()) for c in calls}), len(traced), sum(traced),
        equal, least >= 0, grown, changing, fixed,
    )  # fmt: skip


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _room_left(planned: nn.Module, model: nn.Module, call: Call, planned_bytes: int) -> int:
    """Return the bytes that are left below the planned peak."""
    model.zero_grad(set_to_none=True)
    members = [*model.parameters(), *model.buffers(), *call.values()]
    held = sum(x.untyped_storage().nbytes() for x in members)
    peak = measure_peak(lambda: torch.autograd.backward(loss_of(planned, call))).peak_bytes
    return planned_bytes - held - peak


def _round(model: nn.Module, calls: list[Call]) -> None:
    for call in calls:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_of(model, call))
    model.zero_grad(set_to_none=True)


def _ratio(planned: nn.Module, model: nn.Module, calls: list[Call], rounds: int) -> float:
    """Return the median over rounds of planned time beside plain time, in turn."""
    found = []
    for _ in range(rounds):
        spent = []
        for one in (planned, model):
            began = time.perf_counter()
            _round(one, calls)
            spent.append(time.perf_counter() - began)
        found.append(spent[0] / spent[1])
    return statistics.median(found)


def main() -> None:
    """Run every case, keep the rows, and fail if a promise is broken."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = [row_of(name) for name in CASES]
    path = record("sizes", rows)
    show(f"Thirty sizes through one plan ({path.name})", rows)
    broken = [r.model for r in rows if not (r.equal and r.within_budget and r.traced == 2)]
    if broken or any(r.grown_bytes > 0 for r in rows):
        raise SystemExit(f"broken: {broken or [r.model for r in rows if r.grown_bytes > 0]}")


if __name__ == "__main__":
    main()
