"""Budgets on an accelerator are kept for what its allocator needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import InfeasibleBudget
from planner.allocator_budget import allocator_of
from planner.errors import BadCluster, BadRequest
from planner.graphs.allocation import runs_within
from planner.graphs.hardware.devices import device
from planner.solvers import Limits

CARD = "A100-40GB"
QUICK = Limits(seconds=2)


def net() -> nn.Module:
    with torch.device("meta"):
        layer = lambda: (nn.Linear(1024, 2048), nn.GELU(), nn.Linear(2048, 1024))  # noqa: E731
        return nn.Sequential(*(nn.Sequential(*layer()) for _ in range(6)))


def plan(budget: int | str, **said: Any) -> planner.Plan:
    x = torch.empty(3000, 1024, device="meta")
    said = {"device": CARD, "loss": torch.mean, "optimizer": "sgd", **said}
    return planner.fit(net(), budget, inputs=x, **said)


@pytest.fixture(scope="module")
def plain() -> planner.Plan:
    return plan("38GB")


@pytest.mark.parametrize("share", [0.65, 0.8, 0.97])
@pytest.mark.parametrize("allocator", ["segments", "expandable segments"])
def test_a_plan_runs_in_its_budget(share: float, allocator: str, plain: planner.Plan) -> None:
    resident = plain.graph.resident_bytes
    budget = int(resident + share * (plain.plain_peak_bytes - resident))
    made = plan(budget, allocator=allocator, limits=QUICK)
    assert made.fits
    assert made.needs is not None
    assert made.peak_bytes <= made.needs.allocated_bytes <= made.needs.needed_bytes <= budget
    expandable = allocator != "segments"
    assert runs_within(made.graph, made.schedule, budget, expandable=expandable)
    assert made.bound_seconds <= made.seconds


def test_the_bound_is_that_of_the_budget_asked_for(plain: planner.Plan) -> None:
    resident = plain.graph.resident_bytes
    budget = int(resident + 0.6 * (plain.plain_peak_bytes - resident))
    made = plan(budget, allocator="segments")
    tensors = planner.solvers.solve(made.graph, budget)
    assert made.bound_seconds == pytest.approx(tensors.bound_seconds)


def test_it_is_said_and_saved(tmp_path: Path, plain: planner.Plan) -> None:
    text = str(plain)
    assert "Device  needs" in text
    assert "through the segments of its" in text
    plain.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert isinstance(again, planner.Plan)
    assert again.allocator == "segments"
    assert again.needs == plain.needs
    assert "Device  needs" not in str(plan("38GB", device="cpu"))


def test_the_least_budget_named_is_one_that_works() -> None:
    with pytest.raises(InfeasibleBudget) as refused:
        plan("1.2GB", limits=QUICK)
    least = refused.value.least_bytes
    assert plan(least + 2**20, limits=QUICK).fits


def test_the_setting_is_read_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    card = device(CARD)
    assert allocator_of("auto", card) == "segments"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512, Expandable_Segments:True")
    assert allocator_of("auto", card) == "expandable segments"
    assert allocator_of("segments", card) == "segments"
    assert allocator_of("segments", device("cpu")) is None


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(BadRequest, match="allocator is 'arena'; expected one of 'auto'"):
        plan("38GB", allocator="arena")
    with pytest.raises(BadCluster, match="allocator= is for one device"):
        planner.fit(net(), "38GB", world_size=2, allocator="segments", device=CARD)  # type: ignore[call-overload]
