"""Every door takes a device that the table does not have: as a value, and as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import planner
from planner.cli import cli
from planner.graphs.hardware.device_files import save_device
from planner.graphs.hardware.devices import Device

MINE = Device("my card", {"float32": 1e12}, 8 * 2**30, 1e11)
INPUTS = torch.zeros(256, 64, device="meta")


def net() -> nn.Module:
    layers = (nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(4))
    return nn.Sequential(*layers).to("meta")


@pytest.fixture(params=["value", "file"])
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Device | str:
    if request.param == "value":
        return MINE
    save_device(MINE, tmp_path / "card.json")
    return str(tmp_path / "card.json")


def test_fit(mine: Device | str) -> None:
    plan = planner.fit(net(), "50%", inputs=INPUTS, device=mine)
    assert (plan.device, plan.budget_bytes) == ("my card", 4 * 2**30)
    assert "my card is not in the table of devices" in " ".join(str(plan).split())
    faster = replace(MINE, peak_flops={"float32": 1e14}, bandwidth=1e13, issue_seconds=1e-6)
    assert planner.fit(net(), "50%", inputs=INPUTS, device=faster).seconds < plan.seconds


def test_fit_over_several(mine: Device | str) -> None:
    with pytest.raises(planner.BadCluster, match="of my card is not known: pass link="):
        planner.fit(net(), "4GB", inputs=INPUTS, device=mine, world_size=2)
    plan = planner.fit(net(), "4GB", inputs=INPUTS, device=mine, world_size=2, link="10GB/s")
    assert plan.cluster.scale_up.bytes_per_second == 1e10
    assert plan.step.device == "my card"
    assert "its speed: given" in " ".join(str(plan).split())


def test_the_other_questions(mine: Device | str) -> None:
    assert planner.pareto(net(), inputs=INPUTS, device=mine, points=2).device == "my card"
    assert planner.compare(net(), "50%", inputs=INPUTS, device=mine, methods=["plain"]).rows


@pytest.mark.slow
def test_the_largest_batch(mine: Device | str) -> None:
    batches = planner.max_batch(
        net(), "1.1GB", inputs=lambda n: torch.zeros(n, 64, device="meta"), device=mine
    )
    assert batches.plan.device == "my card"


def test_the_command_line(tmp_path: Path) -> None:
    save_device(MINE, tmp_path / "card.json")
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "def build():\n    return torch.nn.Linear(64, 64)\n"
        "def inputs():\n    return torch.zeros(8, 64)\n"
    )
    spec, told = f"{tmp_path}/model.py:build", f"{tmp_path}/model.py:inputs"
    said = ["fit", spec, "--budget", "50%", "--inputs", told, "--device", f"{tmp_path}/card.json"]
    result = CliRunner().invoke(cli, said)
    assert result.exit_code == 0, result.output
    assert "my card" in result.output


def test_a_plan_keeps_the_figures_of_a_device_that_no_table_has(tmp_path: Path) -> None:
    planner.fit(net(), "1.1GB", inputs=INPUTS, device=MINE).save(tmp_path / "plan.json")
    plan = planner.load(tmp_path / "plan.json")
    assert isinstance(plan, planner.Plan)
    assert plan.hardware == MINE
    planned = plan.apply(net().to_empty(device="cpu"), on_mismatch="replan")
    planned(torch.zeros(3, 64)).sum().backward()


def test_a_plan_for_a_device_of_the_table_names_it_only(tmp_path: Path) -> None:
    planner.fit(net(), "2GB", inputs=INPUTS, device="L4").save(tmp_path / "plan.json")
    plan = planner.load(tmp_path / "plan.json")
    assert isinstance(plan, planner.Plan)
    assert (plan.device, plan.hardware) == ("L4", None)
