"""Blocks compiled by themselves, as often as a model has them, within one budget."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.graphs import Kind
from tests.compiled import QUICK, Block, measured_bytes

COUNT = 4
pytestmark = pytest.mark.usefixtures("stubbed")


class Blocks(nn.Module):
    """A few blocks, each compiled by itself."""

    def __init__(self, backend: object) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(32) for _ in range(COUNT))
        for block in self.blocks:
            block.compile(backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.sum()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo reads it
@pytest.mark.parametrize("trained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_all_blocks_hold_together_is_within_the_budget(
    trained: bool,
    tmp_path: Path,
) -> None:
    x = torch.randn(512, 32, requires_grad=trained)  # without, the first block is compiled alone
    large = planner.backend("1GB", calls=COUNT, **QUICK)
    usual = measured_bytes(Blocks(large), x)
    assert len(large.plans) == 2 - trained
    assert usual <= large.plans[-1].peak_bytes <= 1.05 * usual
    torch._dynamo.reset()
    budget = int(0.65 * usual)
    small = planner.backend(budget, calls=COUNT, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error", planner.PlannerWarning)  # none says that more calls wait
        measured = measured_bytes(Blocks(small), x)
    plan = small.plans[-1]
    assert measured <= plan.peak_bytes <= budget
    assert plan.recomputed
    assert trained is False or plan.peak_bytes <= 1.05 * measured
    assert any("one call of 4" in remark for remark in plan.remarks)
    if not trained:
        return
    plan.save(tmp_path / "plan.json")
    known = planner.load(tmp_path / "plan.json")
    torch._dynamo.reset()
    again = planner.backend(budget, plans=[known], calls=COUNT, **QUICK)
    assert measured_bytes(Blocks(again), x) == measured
    assert again.plans == (known,)


def test_the_optimizers_states_of_all_blocks_are_counted() -> None:
    x = torch.randn(64, 32, requires_grad=True)
    counted = planner.backend("1GB", calls=COUNT, **{**QUICK, "optimizer": "adamw"})
    model = Blocks(counted)
    model(x).backward()
    held = dict.fromkeys(Kind, 0)
    for value in counted.plans[0].graph.values:
        held[value.kind] += value.size_bytes
    parameters = sum(p.nbytes for p in model.parameters())
    assert held[Kind.PARAMETER] == parameters
    assert 2 * parameters <= held[Kind.OPTIMIZER] <= 2 * parameters + 8 * 6 * COUNT


def test_more_calls_than_are_counted_are_warned_of() -> None:
    x = torch.randn(64, 32, requires_grad=True)
    alone = planner.backend("1GB", **QUICK)
    compiled = torch.compile(Block(32), backend=alone)
    for _ in range(2):  # one after the other
        compiled(x).sum().backward()
    dropped = compiled(x)
    del dropped
    first = compiled(x)
    with pytest.warns(planner.PlannerWarning, match=r"2 calls .* the plan counts 1: .*calls=12"):
        second = compiled(x)
    (first + second).sum().backward()
    with pytest.raises(planner.BadRequest, match="calls= is 0"):
        planner.backend("1GB", calls=0)
