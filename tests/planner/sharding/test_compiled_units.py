"""Sharded steps whose units are compiled: what is planned of them, and two ranks train them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.graphs import plain_schedule, simulate
from planner.graphs.capture.call_arguments import arguments
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.request import requested
from planner.running.engines.compiled_unit import captured_unit, held_unit
from planner.running.engines.engine import CapturedUnit
from planner.sharding.wrapped.boundary import UnitCapture
from planner.sharding.wrapped.engine_units import run_by_engine
from planner.sharding.wrapped.unit_captures import capture_units
from tests.planner.sharding.blocks import LENGTH, WIDTH, batch, decoder
from tests.planner.sharding.compiled_ranks import SAID, planned, trained
from tests.planner.sharding.ranks import run_ranks

ROWS = 2


@pytest.fixture(scope="module")
def unit() -> CapturedUnit:
    model = decoder(1, dropout=0.1, tied=False)
    call = arguments(
        (torch.zeros(ROWS, LENGTH, WIDTH, requires_grad=True),), {"scale": model.scale}
    )
    with requested(model, {"inputs": batch(), "device": "cpu", "progress": "off"}) as request:
        return captured_unit(model.h[0], call, request)


@pytest.fixture(scope="module")
def eager() -> UnitCapture:
    (kind,) = capture_units(decoder(2, dropout=0.1, tied=False), batch(), device="cpu").kinds
    return kind


def test_the_border_of_a_compiled_unit_is_that_of_eager_mode(
    unit: CapturedUnit, eager: UnitCapture
) -> None:
    compiled = run_by_engine(eager, unit)
    for one, other in ((compiled, eager), (eager, compiled)):
        sizes = [v.size_bytes for v in one.graph.values]
        others = [v.size_bytes for v in other.graph.values]
        for p, q in zip(one.parameters, other.parameters, strict=True):
            assert sizes[p.value] == others[q.value]
            assert p.gradient is not None
            assert sizes[p.gradient] == sizes[p.value]
        for ends in ("inputs", "outputs"):
            pairs = zip(getattr(one, ends), getattr(other, ends), strict=True)
            assert all(sizes[v] == others[w] for v, w in pairs)
    assert [g is None for g in compiled.input_gradients] == [False, True]
    assert any(op.target.startswith("fused(") for op in compiled.graph.ops)
    with pytest.raises(GraphsCaptureError, match="returns 2 tensors"):
        run_by_engine(eager, replace(unit, outputs=unit.outputs * 2))


def test_what_the_code_of_a_unit_holds_is_near_what_its_schedule_says(unit: CapturedUnit) -> None:
    graph = unit.captured.graph
    held = held_unit(unit, plain_schedule(graph))
    code = held.captured.graph
    said = simulate(graph, plain_schedule(graph)).peak_bytes
    peak = simulate(code, plain_schedule(code)).peak_bytes
    assert peak == held.captured.signature["compiled"]["held_bytes"]
    assert 0.9 * said <= peak <= 1.1 * said
    assert held.parameters.keys() == unit.parameters.keys()
    sizes = [[v.size_bytes for v in g.values] for g in (graph, code)]
    for (value, gradient), (again, written) in zip(
        unit.parameters.values(), held.parameters.values(), strict=True
    ):
        assert value == again
        assert gradient is not None
        assert written is not None
        assert sizes[0][gradient] == sizes[1][written]


def test_what_cannot_be_compiled_is_refused() -> None:
    said: dict[str, Any] = {"inputs": batch(), **SAID, "global_batch": 4}
    with torch.device("meta"):
        hollow = decoder(2, tied=False)
    with pytest.raises(planner.CaptureError, match="on meta"):
        planner.fit(hollow, "1GB", **said)
    with pytest.raises(planner.BadCluster, match="tensor_parallel= does not go with"):
        planner.fit(decoder(2, tied=False), "1GB", tensor_parallel=2, **said)
    broken = decoder(2, tied=False)
    broken.h[0], broken.h[1] = Broken(), Broken()
    with pytest.raises(planner.CaptureError, match=r"(?s)Broken, a unit.*graph_break.*op_by_op"):
        planner.fit(broken, "1GB", **said)


class Broken(nn.Module):
    """A unit that Dynamo does not take whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        x = x * scale
        torch._dynamo.graph_break()
        y: torch.Tensor = self.linear(x)
        return y


@pytest.fixture(scope="module")
def plans() -> dict[str, planner.ShardedPlan]:
    large = planned("1GB")
    fixed = large.step.graph.resident_bytes
    tight = planned(int(fixed + 0.7 * (large.peak_bytes - fixed)))
    return {"large": large, "tight": tight}


@pytest.fixture(scope="module")
def found(plans: dict[str, planner.ShardedPlan]) -> dict[str, list[Any]]:
    def on_ranks(name: str) -> list[Any]:
        job: Callable[..., Any] = functools.partial(trained, plans[name])
        return run_ranks(job, timeout_seconds=600)

    return {name: on_ranks(name) for name in plans}


@pytest.mark.slow
def test_a_plan_says_what_it_is_for_and_is_saved(
    plans: dict[str, planner.ShardedPlan], tmp_path: Path
) -> None:
    tight = plans["tight"]
    assert tight.fits
    assert tight.step.engine == "inductor"
    assert tight.recomputed
    assert all(unit.held_bytes for unit in tight.units)
    tight.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == tight


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "tight"])
def test_two_ranks_train_as_with_inductors_default_in_every_bit(
    found: dict[str, list[Any]], name: str
) -> None:
    for rank in found[name]:
        usual, ours = rank["usual"], rank["ours"]
        assert usual.losses == ours.losses
        for left, right in (
            (usual.gradients, ours.gradients),
            (usual.parameters, ours.parameters),
        ):
            assert left.keys() == right.keys() != set()
            assert all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "tight"])
def test_each_rank_holds_what_was_predicted(
    plans: dict[str, planner.ShardedPlan], found: dict[str, list[Any]], name: str
) -> None:
    plan = plans[name]
    for rank in found[name]:
        if not (ours := rank["ours"]).complete:
            pytest.skip("gloo's threads left no complete record of any step")
        predicted = plan.peak_bytes - plan.reserve_bytes
        assert ours.peak_bytes <= plan.peak_bytes <= plan.budget_bytes
        assert ours.peak_bytes == pytest.approx(predicted, rel=0.05)


@pytest.mark.slow
def test_alike_units_are_compiled_once(
    plans: dict[str, planner.ShardedPlan], found: dict[str, list[Any]]
) -> None:
    for name, plan in plans.items():
        distinct = {(unit.kind, unit.schedule) for unit in plan.units}
        assert all(rank["compiled"] == len(distinct) for rank in found[name])
    assert len({(unit.kind, unit.schedule) for unit in plans["large"].units}) == 1
