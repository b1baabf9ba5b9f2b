"""A model branches on its data: each branch is planned once, and runs as in eager mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import planner
from planner import PlanMismatch, PlannerWarning
from planner.graphs.torch_api.allocation_records import measure_peak
from tests.training import resident_bytes


class Asking(nn.Module):
    """Gaps and long rows are treated apart; the second question is asked of gaps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.register_buffer("warm", torch.tensor(0))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids)
        if self.warm > 0:
            h = h * 2
        if not mask.all():
            h = h * mask[..., None]
            if (mask.sum(1) < 3).any():
                h = torch.tanh(self.inner(h)) + h
        mean: Tensor = self.out(self.inner(h).relu()).mean()
        return mean


def call(rows: int, least: int, length: int = 8) -> dict[str, Tensor]:
    ids = torch.arange(rows * length).reshape(rows, length) % 9
    mask = torch.arange(length) < torch.linspace(least, length, rows).long()[:, None]
    return {"ids": ids, "mask": mask}


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    loss = model(**inputs)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(model: nn.Module, planned: nn.Module, inputs: dict[str, Tensor]) -> None:
    for a, b in zip(gradients(planned, inputs), gradients(model, inputs), strict=True):
        assert torch.equal(a, b)


def test_each_branch_is_traced_once_and_serves_smaller_sizes(traced: list[bool]) -> None:
    torch.set_num_threads(1)
    model = Asking()
    both = {"ids": (0, 1), "mask": (0, 1)}
    plan = planner.fit(model, "1GB", inputs=call(6, 4), dynamic=both, optimizer=None)
    planned = plan.apply(model)
    for _ in range(2):
        for least in (4, 8, 1):
            for rows, length in ((6, 8), (5, 8), (3, 7), (2, 5), (4, 6)):
                assert_same(model, planned, call(rows, min(least, length), length))
        count = len(traced)
    assert len(traced) == count <= 3 * 4
    for least in (4, 8, 1):
        for rows in (6, 4):
            inputs = call(rows, least)
            model.zero_grad(set_to_none=True)
            peak = measure_peak(lambda c=inputs: planned(**c).backward()).peak_bytes  # type: ignore[misc]
            assert resident_bytes(model, inputs) + peak <= plan.budget_bytes


def test_a_question_of_a_buffer_that_the_loop_changes() -> None:
    model = Asking()
    planned = planner.fit(model, "1GB", inputs=call(4, 4), optimizer=None).apply(model)
    for warm in (0, 1, 0):
        model.warm.fill_(warm)
        for least in (4, 8):
            assert_same(model, planned, call(4, least))


def test_the_same_graph_needs_no_plan_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, count: Tensor) -> Tensor:
            found: Tensor = super().forward(x) / int(count)
            return found

    model, x = Scaled(4, 4), torch.randn(3, 4)
    inputs = {"x": x, "count": torch.tensor(3)}
    planned = planner.fit(model, "1GB", inputs=inputs, optimizer=None).apply(model)
    monkeypatch.setattr(planner.planning, "plan_step", None)
    for count in (3, 5, 7, 3, 5):
        assert torch.equal(planned(x, torch.tensor(count)), model(x, torch.tensor(count)))
    for count in range(20, 25):
        planned(x, torch.tensor(count)).sum().backward()
    with pytest.warns(PlannerWarning, match="has 8 branches by what the model asks"):
        planned(x, torch.tensor(30))


def test_a_branch_beyond_the_budget_is_refused_and_the_others_go_on() -> None:
    class Wide(nn.Linear):
        def forward(self, x: Tensor, wide: Tensor) -> Tensor:
            h = super().forward(x)
            if wide.item():
                h = h.repeat_interleave(4000, 0).tanh().exp().reshape(4000, *h.shape).sum(0)
            return h

    model, x = Wide(4, 4), torch.randn(30, 4)
    inputs = {"x": x, "wide": torch.tensor(0)}
    planned = planner.fit(model, "1MB", inputs=inputs, optimizer=None).apply(model)
    for wide in (0, 1, 0, 1):
        if wide:
            with pytest.raises(PlanMismatch, match=r"asks for a value at .*No schedule was found"):
                planned(x, torch.tensor(1))
        else:
            planned(x, torch.tensor(0)).sum().backward()
