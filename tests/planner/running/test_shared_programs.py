"""Units that are alike run one program; whichever differs has one of its own, or is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from planner.errors import PlanMismatch
from planner.plan.step_plan import StepPlan
from planner.running.apply import planned_class
from planner.running.engines import op_by_op
from planner.running.planned_module import reclassed
from planner.running.shared_programs import SharedPrograms
from planner.sharding.wrapped.unit_captures import capture_units
from planner.solvers import Status, solve
from tests.planner.sharding.blocks import Block, batch, decoder


def plan_of_blocks(model: nn.Module) -> StepPlan:
    (kind,) = capture_units(model, batch(), device="cpu").kinds
    schedule = solve(kind.graph, 10**12, method="recompute_all").schedule
    assert schedule is not None
    return StepPlan(
        kind.graph, schedule, 10**12, Status.FEASIBLE, 0.0, "recompute_all", kind.signature
    )


def applied(plan: StepPlan, blocks: Sequence[Any]) -> list[nn.Module]:
    shared = SharedPrograms()
    classes = [planned_class(plan, block, shared=shared) for block in blocks]
    return [reclassed(block, cls) for block, cls in zip(blocks, classes, strict=True)]


@pytest.fixture
def recaptures(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    found: list[nn.Module] = []
    own = op_by_op.recapture

    def counted(model: nn.Module, *args: Any, **options: Any) -> Any:
        found.append(model)
        return own(model, *args, **options)

    monkeypatch.setattr(op_by_op, "recapture", counted)
    return found


def gradients(blocks: Sequence[nn.Module], rows: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(5)
    x = torch.randn(rows, 16, 32, requires_grad=True)
    for block in blocks:
        block.zero_grad(set_to_none=True)
        x = block(x, scale=torch.ones(32))
    x.square().mean().backward()
    return [p.grad.clone() for b in blocks for p in b.parameters() if p.grad is not None]


def test_alike_units_are_traced_once_and_compute_what_they_did(recaptures: list[nn.Module]) -> None:
    model = decoder(4, dropout=0.1)
    blocks = list(model.h)
    planned = applied(plan_of_blocks(model), blocks)
    assert len(recaptures) == 1
    for rows, traces in ((2, 1), (1, 2)):  # smaller micro-batches are traced once, too
        expected, found = gradients(blocks, rows), gradients(planned, rows)
        assert len(expected) == 4 * 9
        assert all(map(torch.equal, expected, found))
        assert len(recaptures) == traces


def test_a_unit_whose_dropout_is_another_gets_a_program_of_its_own(
    recaptures: list[nn.Module],
) -> None:
    model = decoder(3, dropout=0.1)
    plan, blocks = plan_of_blocks(model), list(model.h)
    blocks[1].dropout.p = 0.2
    planned = applied(plan, blocks)
    assert recaptures == blocks[:2]
    assert all(map(torch.equal, gradients(blocks), gradients(planned)))


def test_one_unit_that_changes_later_leaves_the_others_as_they_are() -> None:
    model = decoder(3, dropout=0.1)
    blocks = list(model.h)
    planned = applied(plan_of_blocks(model), blocks)
    gradients(planned)
    blocks[1].dropout.p = 0.3
    assert all(map(torch.equal, gradients(blocks), gradients(planned)))


def test_a_unit_that_does_something_else_is_refused() -> None:
    class Other(Block):
        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            return super().forward(x, scale=scale) * 2

    model = decoder(2)
    Other.__qualname__ = "Block"
    with pytest.raises(PlanMismatch, match="does not do what the plan was made for"):
        applied(plan_of_blocks(model), [model.h[0], reclassed(model.h[1], Other)])
