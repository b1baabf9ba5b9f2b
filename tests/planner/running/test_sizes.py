"""One plan serves every smaller call: same bits as eager mode, within the same peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner import InfeasibleBudget, PlanMismatch
from planner.errors import BadRequest, CaptureError
from planner.graphs.torch_api.allocation_records import measure_peak
from tests.scenes import DEEP
from tests.training import resident_bytes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Masked(nn.Module):
    """Sequences with their lengths: several arguments, a size in the code, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(50, 16), nn.Dropout(0.1)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + self.drop(torch.tanh(layer(x)))
        keep = torch.arange(ids.shape[1]) < lengths[:, None]
        return (x.square().mean(-1) * keep).sum() / ids.shape[0]


def masked_call(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(rows))
    return {"ids": ids, "lengths": torch.arange(rows) % length + 1}


def gradients(model: nn.Module, call: dict[str, Tensor]) -> list[Tensor | None]:
    torch.manual_seed(5)
    model.zero_grad(set_to_none=True)
    loss = model(**call)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def assert_equal(planned: list[Tensor | None], plain: list[Tensor | None]) -> None:
    for a, b in zip(planned, plain, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


def fitted(model: nn.Module, call: dict[str, Tensor], **said: Any) -> planner.Plan:
    """Plan so that whatever can be is recomputed, the budget as close as can be."""
    said |= {"inputs": call, "optimizer": None, "method": "recompute_all"}
    plan = planner.fit(model, "1GB", **said)
    return replace(plan, budget_bytes=plan.peak_bytes)


def test_every_smaller_batch_and_length_is_served() -> None:
    torch.manual_seed(0)
    model = Masked()
    both = {"ids": (0, 1), "lengths": 0}
    plan = fitted(model, masked_call(12, 20), dynamic=both)
    planned = plan.apply(model)
    for rows, length in [(12, 20), (1, 20), (7, 20), (12, 3), (5, 11), (2, 1), (1, 1), (12, 20)]:
        call = masked_call(rows, length)
        assert_equal(gradients(planned, call), gradients(model, call))
        model.zero_grad(set_to_none=True)
        measured = measure_peak(lambda call=call: planned(**call).backward())  # type: ignore[misc]
        assert resident_bytes(model, call) + measured.peak_bytes <= plan.peak_bytes


def test_the_batch_alone_is_free_by_default() -> None:
    model = Masked()
    planned = fitted(model, masked_call(12, 20)).apply(model)
    planned(**masked_call(5, 20)).backward()
    with pytest.raises(PlanMismatch, match=r"int64\[12, 10\], planned for int64\[12, 20\]"):
        planned(**masked_call(12, 10))
    planned = fitted(model, masked_call(12, 20), dynamic="off").apply(model)
    with pytest.raises(PlanMismatch, match=r"int64\[5, 20\], planned for int64\[12, 20\]"):
        planned(**masked_call(5, 20))


def test_a_larger_call_names_the_limit_and_runs_plain_without_gradients() -> None:
    model = Masked()
    planned = fitted(model, masked_call(12, 20), dynamic={"ids": (0, -1), "lengths": 0})
    planned = planned.apply(model)
    limit = "argument ids has 13 rows, the plan serves up to 12"
    with pytest.raises(PlanMismatch, match=limit):
        planned(**masked_call(13, 20))
    with pytest.raises(PlanMismatch, match="ids has 21 in dimension 1, the plan serves up to 20"):
        planned(**masked_call(12, 21))
    with torch.no_grad():
        assert torch.equal(planned.eval()(**masked_call(13, 20)), model(**masked_call(13, 20)))


def test_targets_are_sizes_too() -> None:
    model, loss = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    said: Any = {"loss": loss, "targets": torch.zeros(16, dtype=torch.long)}
    planned = planner.fit(model, "1GB", inputs=torch.randn(16, 4), **said).apply(model)
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    planned(x, targets=y).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    loss(model(x), y).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))


def test_a_model_may_do_something_else_at_a_size() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return (y.tanh() if len(x) > 4 else y.relu()).sum()

    model = Short()
    planned = planner.fit(model, "1GB", inputs=torch.randn(8, 4)).apply(model)
    for rows in (8, 5, 3, 1):
        x = torch.randn(rows, 4)
        assert torch.equal(planned(x), model(x))


@pytest.mark.parametrize(
    ("dynamic", "error", "words"),
    [
        ("sequence", BadRequest, 'expected "batch", "off" or a mapping'),
        ({"x": 0}, CaptureError, "dynamic names 'x', but the arguments are 'ids', 'lengths'"),
        ({"lengths": 1}, CaptureError, "dimension 1 of 'lengths', which has 1"),
    ],
)
def test_what_cannot_be_is_refused(dynamic: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        planner.fit(Masked(), "1GB", inputs=masked_call(4, 6), dynamic=dynamic)


def test_replanned_shapes_are_bounded_and_errors_remembered() -> None:
    model = DEEP.model()
    plan = planner.fit(model, "400kB", inputs=torch.randn(64, 16), optimizer=None)
    planned = plan.apply(model, on_mismatch="replan")
    for _ in range(2):
        with pytest.raises(InfeasibleBudget):
            planned(torch.randn(4096, 16))
