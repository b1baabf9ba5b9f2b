"""The curve as people meet it: table, plans taken from it, and the command line."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import planner
from planner.analysis.curve import Curve
from planner.byte_sizes import format_percent
from planner.cli import cli
from planner.output.layout import WIDTH

Golden = Callable[[str, str], None]
SVG = "{http://www.w3.org/2000/svg}"


def test_golden_table(curve: Curve, golden: Golden) -> None:
    golden("curve.txt", f"{curve}\n")


def test_every_line_is_short(curve: Curve) -> None:
    assert max(map(len, str(curve).splitlines())) <= WIDTH
    assert "best heuristic" not in str(replace(curve, rivals={}))


def test_the_ends(curve: Curve) -> None:
    first, last = curve.points[0], curve.points[-1]
    assert (curve.least_bytes, curve.plain_bytes) == (first.budget_bytes, last.budget_bytes)
    assert last.overhead == last.bound_overhead == last.gap == 0.0
    assert first.overhead > 0
    assert curve.overhead(curve.least_bytes - 1) is None
    assert curve.overhead("100GB") == 0.0
    assert curve.bound_overhead(1) == math.inf


def test_a_plan_from_the_curve(curve: Curve) -> None:
    for point in curve.points:
        plan = curve.plan(point.budget_bytes)
        assert plan.fits
        assert (plan.peak_bytes, plan.overhead) == (point.peak_bytes, point.overhead)
        assert plan.bound_overhead == pytest.approx(point.bound_overhead)
    between = (curve.points[1].budget_bytes + curve.points[2].budget_bytes) // 2
    assert curve.plan(between).bound_overhead <= curve.points[1].bound_overhead + 1e-9


def test_below_the_least_budget(curve: Curve) -> None:
    with pytest.raises(planner.InfeasibleBudget) as raised:
        curve.plan(curve.least_bytes - 1)
    assert raised.value.least_bytes == curve.least_bytes


def test_no_heuristic_is_better(curve: Curve) -> None:
    for point in curve.points:
        best = curve.best_rival(point.budget_bytes)
        assert best is None or best[1] >= point.overhead - 1e-9
    assert curve.best_rival(1) is None


def test_a_step_that_nothing_can_shrink() -> None:
    found = planner.pareto(nn.Linear(4, 4), inputs=torch.zeros(2, 4), points=3)
    assert len(found.points) == 1
    assert "<svg" in planner.render_curve_svg(found)
    assert "100%" in str(found)


def test_few_points_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="points=1"):
        planner.pareto(nn.Linear(4, 4), inputs=torch.zeros(2, 4), points=1)


def test_a_plan_of_the_curve_runs(make_net: Callable[[], nn.Module]) -> None:
    model, x = make_net(), torch.zeros(64, 16)
    plan = planner.pareto(model, inputs=x, points=3, optimizer=None).plan("1GB")
    plan.apply(model)(x)


def test_on_the_command_line(tmp_path: Path, forget_imports: None) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    layers = [m for _ in range(3) for m in (nn.Linear(16, 16), nn.GELU())]\n"
        "    return nn.Sequential(*layers), torch.zeros(4096, 16)\n"
    )
    spec, plot = f"{tmp_path}/net.py:make", tmp_path / "curve.svg"
    result = CliRunner().invoke(cli, ["pareto", spec, "--points", "3", "--json"])
    answers = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answers["points"][-1]["overhead"] == 0.0
    assert answers["least_bytes"] == answers["points"][0]["budget_bytes"]
    result = CliRunner().invoke(cli, ["pareto", spec, "--points", "3", "--plot", str(plot)])
    assert result.exit_code == 0
    assert format_percent(answers["points"][0]["overhead"]) in result.stdout
    assert ET.fromstring(plot.read_text()).tag == f"{SVG}svg"


def test_wrong_arguments_on_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["pareto", "nowhere.py:f"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    missing = tmp_path / "no" / "curve.svg"
    result = CliRunner().invoke(cli, ["pareto", "x.py:f", "--plot", str(missing)])
    assert result.exit_code == 2
    assert "its folder must exist" in result.stderr.replace("\n", " ")


def test_checkpointed_blocks_are_drawn_as_eager_mode_holds_them() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
                                   for _ in range(3))  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.h:
                x = x + block(x)
            return x.square().mean()

    found = planner.pareto(Tower(), inputs=torch.zeros(512, 32), points=3, heuristics=True)
    assert found.run_by_torch == ("checkpoint",)
    assert found.captured.eager is not None
    assert max(m.peak_bytes for m in found.rivals["checkpoint"]) == found.captured.eager_peak_bytes
    assert "Peaks of checkpoint are eager mode's" in " ".join(str(found).split())
    assert "checkpoint (eager mode)" in planner.render_curve_svg(found)
    assert found.to_json()["heuristics_in_eager_mode"] == ["checkpoint"]


def test_on_an_accelerator_every_point_says_what_the_device_needs() -> None:
    with torch.device("meta"):
        layers = (
            nn.Sequential(nn.Linear(512, 4096), nn.GELU(), nn.Linear(4096, 512)) for _ in "ab"
        )
        model, x = nn.Sequential(*layers), torch.empty(4000, 512)
    said = {"inputs": x, "loss": torch.mean, "optimizer": "sgd", "points": 4, "progress": "off"}
    curve = planner.pareto(model, device="A100-40GB", allocator="expandable segments", **said)  # type: ignore[arg-type]
    assert curve.needed_bytes is not None
    assert "device needs" in str(curve)
    for point, needed in zip(curve.points, curve.needed_bytes, strict=True):
        assert needed >= point.peak_bytes
        plan = curve.plan(needed)
        assert plan.fits
        assert plan.seconds <= point.seconds * (1 + 1e-9)
    assert curve.to_json()["points"][0]["needed_bytes"] == curve.needed_bytes[0]
    on_cpu = planner.pareto(model, device="cpu", **said)  # type: ignore[arg-type]
    assert on_cpu.needed_bytes is None
    assert "device needs" not in str(on_cpu)
