"""Budgets on an accelerator are kept for what its allocator needs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import InfeasibleBudget, allocator_budget
from planner.allocator_budget import allocator_of, runs, solve_within
from planner.errors import BadCluster, BadRequest
from planner.graphs import Graph, Op, Value, plain_schedule
from planner.graphs.allocation import runs_within
from planner.graphs.hardware.devices import device
from planner.solvers import Limits, Solution, Status, solve
from planner.solvers.given_order import STOPPED
from tests.asked import request
from tests.by_default import slow_but

CARD = "A100-40GB"
QUICK = Limits(seconds=4)


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


@pytest.mark.parametrize("share", slow_but({0.72, 0.8, 0.97}, [0.65, 0.72, 0.8, 0.97]))
@pytest.mark.parametrize("allocator", ["segments", "expandable segments"])
def test_a_plan_runs_in_its_budget(share: float, allocator: str, plain: planner.Plan) -> None:
    resident = plain.graph.resident_bytes
    budget = int(resident + share * (plain.plain_peak_bytes - resident))
    made = plan(budget, allocator=allocator, limits=QUICK if share > 0.7 else Limits())
    assert made.fits
    assert made.needs is not None
    assert made.peak_bytes <= made.needs.allocated_bytes <= made.needs.needed_bytes <= budget
    expandable = allocator != "segments"
    assert runs_within(made.graph, made.schedule, budget, expandable=expandable)
    assert made.bound_seconds <= made.seconds


def test_the_bound_is_that_of_the_budget_asked_for(plain: planner.Plan) -> None:
    resident = plain.graph.resident_bytes
    budget = int(resident + 0.8 * (plain.plain_peak_bytes - resident))
    tensors = planner.solvers.solve(plain.graph, budget)
    asked = request(device=CARD, allocator="segments", limits=Limits(seconds=6, reorder=False))
    made = solve_within(plain.graph, budget, asked)
    assert made.schedule is not None
    assert not made.schedule.is_reordered
    assert made.bound_seconds == pytest.approx(tensors.bound_seconds)
    asked = request(device=CARD, allocator="segments", limits=Limits(seconds=6))
    anyhow = solve_within(plain.graph, budget, asked)
    assert anyhow.reordered or anyhow.bound_seconds == pytest.approx(tensors.bound_seconds)


def test_it_is_said_and_saved(tmp_path: Path, plain: planner.Plan) -> None:
    text = " ".join(str(plain).split())
    assert plain.needs is not None
    assert plain.hardware is not None
    tensors = plain.peak_bytes - plain.hardware.reserve_bytes
    more = (plain.needs.needed_bytes - plain.peak_bytes) / tensors
    assert f"for them, {100 * more:.2f}% more than they take, through the segments of its" in text
    assert text.count("Device needs") == 1
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


def test_an_order_that_loses_less_is_preferred_to_running_ops_again() -> None:
    sizes = (30, 21, 50, 21, 30, 41)
    reads = [(), (0,), (1,), (2,), (1,), (2, 4)]
    ops = tuple(Op(f"op{i}", "f", inputs, (i,), 1.0) for i, inputs in enumerate(reads))
    graph = Graph(ops, tuple(Value("v", size * 2**20) for size in sizes), frozenset({5}))
    asked = request(device=CARD, allocator="expandable segments")
    budget = 140 * 2**20
    assert not runs(graph, plain_schedule(graph), budget, asked)
    found = solve_within(graph, budget, asked)
    assert found.schedule is not None
    assert found.status is Status.OPTIMAL
    assert found.schedule.is_plain
    assert runs(graph, found.schedule, budget, asked)
    assert found == solve_within(graph, budget, asked)


def test_sizes_that_change_are_told(plain: planner.Plan) -> None:
    assert plain.needs is not None
    worst = plain.needed_bytes_at_sizes
    assert worst is not None
    assert worst >= plain.needs.needed_bytes
    assert plan("38GB", dynamic="off").needed_bytes_at_sizes is None
    assert plan("38GB", device="cpu").needed_bytes_at_sizes is None
    assert "workspaces of cuBLAS" in str(plain)
    assert "smaller calls" not in str(plain)
    tight = replace(plain, budget_bytes=plain.needs.needed_bytes)
    told = " ".join(str(tight).split())
    assert ("smaller calls come before the largest" in told) == (worst > tight.budget_bytes)


def test_a_correction_may_take_half_of_the_time_that_is_left(
    plain: planner.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[Limits]()

    def recorded(graph: Graph, budget_bytes: int, **options: Any) -> Solution:
        given.append(options["limits"])
        return solve(graph, budget_bytes, **options)

    monkeypatch.setattr(allocator_budget, "solve", recorded)
    asked = request(device=CARD, allocator="segments", limits=Limits(seconds=600))
    resident = plain.graph.resident_bytes
    budget = int(resident + 0.6 * (plain.plain_peak_bytes - resident))
    solve_within(plain.graph, budget, asked, thorough=False)
    first, *later = given
    assert first == replace(asked.limits, seconds=450.0)  # the corrections are to have some
    assert later
    assert all(250 < limits.seconds <= 300 and limits.gap == 0.01 for limits in later)


def test_that_time_ended_the_corrections_is_said(
    plain: planner.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = plain.graph.resident_bytes
    budget = int(resident + 0.8 * (plain.plain_peak_bytes - resident))
    asked = request(device=CARD, allocator="segments", limits=Limits(seconds=60))
    ticks = itertools.count(0.0, 100.0)
    clock = SimpleNamespace(perf_counter=ticks.__next__)
    monkeypatch.setattr(allocator_budget, "time", clock)
    assert STOPPED in solve_within(plain.graph, budget, asked).message
