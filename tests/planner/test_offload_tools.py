"""``offload=`` in the other questions: the curve, the largest batch, the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import planner
from planner.analysis.curve import Curve
from planner.analysis.curve_picture import render_curve_svg
from planner.cli import cli
from planner.comparison import WITH_HOST
from planner.graphs import simulate
from planner.solvers import Limits

RATE = {"bytes_per_second": 4e9}
ROWS, WIDTH = 512, 32


def block(_: int) -> nn.Module:
    inner = [nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.GELU()]
    return nn.Sequential(*inner)


class Tower(nn.Module):
    """Blocks whose insides are cheap to recompute at best in part, and read again by backward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.h = nn.ModuleList(map(block, range(3)))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = x + block(x)
        return x


def loss(out: Tensor) -> Tensor:
    return out.square().mean()


def rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


SAID: dict[str, Any] = {"loss": loss, "optimizer": None, "progress": "off", "limits": Limits(2.0)}


@pytest.fixture(scope="module")
def curve() -> Curve:
    said = {**SAID, "inputs": rows(), "offload": RATE}
    return planner.pareto(Tower(), points=3, heuristics=True, **said)


def test_the_curve_with_a_host_is_below_that_without(curve: Curve) -> None:
    alone = planner.pareto(Tower(), points=3, inputs=rows(), **SAID)
    assert curve.least_bytes < alone.least_bytes
    own, other = curve.overhead(alone.least_bytes), alone.points[0].overhead
    assert own is not None
    assert own < other
    assert curve.bound_overhead(alone.least_bytes) <= own


def test_it_says_what_moves(curve: Curve) -> None:
    text, said = " ".join(str(curve).split()), json.loads(json.dumps(curve.to_json()))
    assert "moved" in text
    assert "Moved: to the host, at 4.00 GB/s there and 4.00 GB/s back" in text
    assert said["points"][0]["moved_bytes"] > 0 == said["points"][-1]["moved_bytes"]
    assert {"offload_all", "checkpoint_offload"} <= said["heuristics"].keys()
    assert "checkpoint_offload (eager mode)" in render_curve_svg(curve)
    without = planner.pareto(Tower(), points=2, inputs=rows(), **SAID)
    assert "moved_bytes" not in without.to_json()["points"][0]


def test_no_heuristic_is_better_than_a_point(curve: Curve) -> None:
    overheads = [p.overhead for p in curve.points]
    assert overheads == sorted(overheads, reverse=True)
    for point in curve.points:
        best = curve.best_rival(point.budget_bytes)
        assert best is None or best[1] >= point.overhead - 1e-9


def test_a_plan_of_the_curve_runs_within_its_budget(curve: Curve) -> None:
    plan = curve.plan(curve.least_bytes)
    assert plan.schedule.moves
    assert plan.fits
    assert plan.overhead == pytest.approx(curve.points[0].overhead)
    plain, planned = Tower(), plan.apply(Tower())
    loss(plain(rows())).backward()
    planned(rows()).backward()  # the loss is part of its plan
    pairs = zip(plain.parameters(), planned.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


def test_below_the_least_budget_the_error_knows_the_host(curve: Curve) -> None:
    with pytest.raises(planner.InfeasibleBudget) as raised:
        curve.plan(curve.least_bytes - 1)
    assert raised.value.least_bytes == curve.least_bytes


@pytest.mark.slow
def test_the_least_budget_is_less_with_a_host() -> None:
    with pytest.raises(planner.InfeasibleBudget) as fitted:
        planner.fit(Tower(), "100KB", inputs=rows(), offload=RATE, **SAID)
    with pytest.raises(planner.InfeasibleBudget) as alone:
        planner.fit(Tower(), "100KB", inputs=rows(), **SAID)
    assert fitted.value.least_bytes < alone.value.least_bytes


def test_methods_side_by_side(curve: Curve) -> None:
    budget = curve.points[1].budget_bytes
    said = {**SAID, "inputs": rows(), "offload": RATE}
    methods = ["auto", "checkpoint", *WITH_HOST]
    found = planner.compare(Tower(), budget, methods=methods, **said)
    assert {row.method for row in found.rows} == set(methods)
    by_name = {row.method: row for row in found.rows}
    assert by_name["offload"].fits
    assert found.rows[0].method == "offload"
    assert by_name["auto"].bound_seconds == found.plain_seconds  # proved for no move at all
    assert found.bound_seconds <= by_name["offload"].seconds  # type: ignore[operator]
    assert by_name["checkpoint_offload"].footing == by_name["offload_all"].footing == "eager"
    large = planner.compare(Tower(), "1GB", methods=["checkpoint_offload", "checkpoint"], **said)
    moved, kept = sorted(large.rows, key=lambda row: row.method == "checkpoint")
    assert moved.peak_bytes < kept.peak_bytes  # type: ignore[operator]


def test_what_moves_values_needs_to_be_told_so() -> None:
    with pytest.raises(planner.BadRequest, match="say offload="):
        planner.compare(Tower(), "1GB", methods=["offload"], inputs=rows(), **SAID)
    with pytest.raises(planner.BadRequest, match="engine='inductor'"):
        planner.pareto(Tower(), inputs=rows(), offload=True, engine="inductor", **SAID)


def test_a_plan_compares_with_its_host(curve: Curve) -> None:
    found = curve.plan(curve.least_bytes).compare(["offload_all", "plain"], limits=Limits(1.0))
    assert {row.method for row in found.rows} == {"offload_all", "plain"}


def test_kept_gradients_go_with_it(curve: Curve) -> None:
    said = {**SAID, "inputs": rows(), "accumulate": True, "limits": Limits(1.0)}
    plan = planner.fit(Tower(), int(1.2 * curve.least_bytes), offload=RATE, **said)
    assert plan.schedule.moves
    plain, planned = Tower(), plan.apply(Tower())
    for _ in range(2):
        loss(plain(rows())).backward()
        planned(rows()).backward()
    pairs = zip(plain.parameters(), planned.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_larger_batch_with_a_host() -> None:
    budget = 2 * planner.pareto(Tower(), points=2, inputs=rows(8), **SAID).plain_bytes
    alone = planner.max_batch(Tower(), budget, inputs=rows, **SAID)
    found = planner.max_batch(Tower(), budget, inputs=rows, offload=RATE, **SAID)
    assert found.batch > alone.batch
    assert found.plain_batch == alone.plain_batch
    assert found.batch <= found.bound_batch
    trace = simulate(
        found.plan.graph,
        found.plan.schedule,
        link_bytes_per_second=found.plan.host.rates if found.plan.host else {},
    )
    assert trace.seconds <= (1 + found.max_overhead) * found.plan.graph.seconds


MODEL = """
import torch
from torch import nn

def make():
    layers = [nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.GELU()] * 2
    return nn.Sequential(*layers), torch.zeros(64, 16)
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pareto", ["--points", "2"]),
        ("compare", ["--budget", "1GB", "--method", "plain", "--method", "checkpoint_offload"]),
        pytest.param("max-batch", ["--budget", "40KB"], marks=pytest.mark.slow),
    ],
)
def test_the_command_line(command: str, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    common = ["--optimizer", "none", "--offload", str(tmp_path), "--time-limit", "1"]
    found = CliRunner().invoke(cli, [command, f"{path}:make", *said, *common, "--json"])
    assert found.exit_code in {0, 1}, found.output
    answers = json.loads(found.stdout)
    if command == "pareto":
        assert "moved_bytes" in answers["points"][0]
