"""Thirty sizes through one plan, on models as libraries have them: written once, same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.running.engines import op_by_op
from tests.training import resident_bytes


@dataclass(frozen=True)
class Case:
    """A model, its largest call, and how a call of other sizes is cut out of it."""

    make: Callable[[], nn.Module]
    largest: Callable[[], dict[str, Tensor]]
    dynamic: Any
    cut: Callable[[dict[str, Tensor], int, int], dict[str, Tensor]]
    symbols: bool = True
    """Whether one program serves the sizes; else each is traced."""


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=40, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def t5() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, use_cache=False,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)  # type: ignore[no-any-return]


class Pictures(nn.Module):
    """Convolutions and batch norm in train mode, of pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 8), (8, 8), (8, 16))
        blocks = ((nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths)
        self.body = nn.Sequential(*(layer for block in blocks for layer in block))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.body(x).mean((2, 3)))
        return head.square().mean()


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 16, 2, batch_first=True), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.cells(x)[0])
        return head.square().mean()


def tokens(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


def cut_tokens(call: dict[str, Tensor], rows: int, length: int) -> dict[str, Tensor]:
    return {name: x[:rows, :length].contiguous() for name, x in call.items()}


BOTH = {"input_ids": (0, 1), "labels": (0, 1)}
CASES = {
    "gpt2": Case(gpt2, lambda: tokens(6, 32), BOTH, cut_tokens),
    "t5": Case(t5, lambda: tokens(6, 32), "batch", lambda c, n, _: cut_tokens(c, n, 32)),
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
        symbols=False,
    ),
}


def sizes() -> Iterator[tuple[int, int]]:
    """Thirty of them, up and down, none of size 1."""
    for k in range(30):
        yield 2 + (3 * k) % 5, 32 - (7 * k) % 29


def step(model: nn.Module, call: dict[str, Tensor], buffers: list[Tensor]) -> list[Tensor | None]:
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    torch.manual_seed(2)
    model.zero_grad(set_to_none=True)
    found = model(**call)
    loss: Tensor = found if isinstance(found, Tensor) else found.loss
    loss.backward()
    made = [loss, *(p.grad for p in model.parameters()), *model.buffers()]
    return [None if x is None else x.detach().clone() for x in made]


@pytest.mark.parametrize("name", CASES)
def test_thirty_sizes_through_one_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    case = CASES[name]
    model, largest = case.make().train(), case.largest()
    buffers = copy.deepcopy(list(model.buffers()))
    said: Any = {"inputs": largest, "optimizer": None, "dynamic": case.dynamic}
    plan = planner.fit(model, "1GB", method="recompute_all", **said)
    planned = plan.apply(model)
    traced: list[bool] = []
    own = op_by_op.recapture

    def counted(*args: Any, any_size: bool) -> Any:
        traced.append(any_size)
        return own(*args, any_size=any_size)

    monkeypatch.setattr(op_by_op, "recapture", counted)
    seen = set()
    for rows, length in sizes():
        call = case.cut(largest, rows, length)
        seen.add(tuple(x.shape for x in call.values()))
        ours = step(planned, call, buffers)
        theirs = step(model, call, buffers)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (b is not None and torch.equal(a, b)), (rows, length)
    assert traced.count(True) == 1, "once for all sizes"
    assert traced.count(False) == (1 if case.symbols else len(seen))
    for rows, length in ((6, 32), (6, 17), (3, 32), (2, 3)):
        call = case.cut(largest, rows, length)
        model.zero_grad(set_to_none=True)
        peak = measure_peak(lambda c=call: backward_of(planned, c)).peak_bytes  # type: ignore[misc]
        assert resident_bytes(model, call) + peak <= plan.peak_bytes, (rows, length)


def backward_of(model: nn.Module, call: dict[str, Tensor]) -> None:
    found = model(**call)
    (found if isinstance(found, Tensor) else found.loss).backward()


def _few_rows(x: Tensor) -> Tensor:
    return x.cumsum(0) if len(x) > 4 else x.cumsum(1)


def _row_by_row(x: Tensor) -> Tensor:
    return torch.stack([row * i for i, row in enumerate(x)])


def _asked_of_sizes(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[0])
    return x * 2 if (places > 5).any() else x * 3


def _weight_of_rows(x: Tensor) -> Tensor:
    return x @ x.t() / 8 + torch.ones(8, 8)[: len(x), : len(x)]


TRICKY: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch on few rows": _few_rows,
    "a loop over rows": _row_by_row,
    "a question of an arange": _asked_of_sizes,
    "a product of rows": _weight_of_rows,
    "a power of a size": lambda x: x * x.shape[0] ** -0.5,
    "a float of a size": lambda x: x * (0.1 * x.shape[0] * 0.7),
    "a tensor of a size": lambda x: x / torch.tensor(float(x.shape[0])),
    "a full of a size": lambda x: x - torch.full((x.shape[0], 1), x.shape[0]),
    "halves": lambda x: torch.cat([x[len(x) // 2 :], x[: len(x) // 2]]),
    "chunks": lambda x: torch.cat([c.flip(0) for c in x.split(3)]),
    "noise": lambda x: x + torch.rand(x.shape),
    "dropout": lambda x: nn.functional.dropout(x.t(), 0.3).t(),
    "channels last": lambda x: (
        x[:, None, None].to(memory_format=torch.channels_last).expand(-1, 3, -1, -1).contiguous()
    ),
    "a variance": lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1),
    "a quantile": lambda x: x.sort(0).values[len(x) // 2] + x,
    "interpolation": lambda x: nn.functional.interpolate(x[None, None], scale_factor=1.5),
    "an identity": lambda x: x @ torch.eye(16) + torch.linspace(0, 1, len(x))[:, None],
}


class Tricky(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(4, 16), [between]

    def forward(self, x: Tensor) -> Tensor:
        return self.between[0](self.first(x)).square().mean()


@pytest.mark.parametrize("name", TRICKY)
def test_whatever_depends_on_a_size_does_so(name: str) -> None:
    torch.manual_seed(0)
    model = Tricky(TRICKY[name])
    largest = {"x": torch.randn(8, 4)}
    said: Any = {"inputs": largest, "optimizer": None, "method": "recompute_all"}
    planned = planner.fit(model, "1GB", **said).apply(model)
    for rows in (8, 7, 6, 5, 3):
        call = {"x": largest["x"][:rows]}
        ours, theirs = step(planned, call, []), step(model, call, [])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), rows  # type: ignore[arg-type]
