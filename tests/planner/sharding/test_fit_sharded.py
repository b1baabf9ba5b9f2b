"""A real model planned over several devices: captured, searched, saved, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import planner
from planner import BadCluster, InfeasibleBudget, ShardedPlan
from planner.cli import cli
from planner.make_cluster import make_cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.captures import Captures
from planner.sharding.configurations import configurations
from planner.sharding.nowhere import least_ranks
from planner.sharding.pricing import price_recipes
from planner.sharding.samples import samples_in, with_samples
from planner.sharding.stage_first import stage_first
from tests.asked import request

WIDTH = 64


class Block(nn.Module):
    """A residual block with something worth recomputing."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """A stem, three equal blocks and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def build() -> tuple[nn.Module, Any]:
    """Return the model on meta, and a batch of four samples."""
    with torch.device("meta"):
        return Net(), torch.zeros(4, 128, WIDTH)


def _fit(budget: str | int, **options: Any) -> ShardedPlan:
    model, inputs = build()
    given = {"world_size": 4, "inputs": inputs, "device": "cpu", "global_batch": 16} | options
    plan = planner.fit(model, budget, **given)
    assert isinstance(plan, ShardedPlan)
    return plan


@pytest.fixture(scope="module")
def plan() -> ShardedPlan:
    return _fit("3.2MB")


def _shop() -> Captures:
    model, inputs = build()
    return Captures(request(model, inputs=inputs, device="cpu", optimizer="adamw"))


def test_the_plan_fits_and_is_near_its_bound(plan: ShardedPlan) -> None:
    """With three units, fetching one ahead is a third of all weights, which no bound sees."""
    assert plan.fits
    assert plan.configuration.global_batch == 16
    assert plan.gap <= 0.1
    assert [u.path for u in plan.units] == ["blocks.0", "blocks.1", "blocks.2"]
    tried = {a.configuration.micro_batch for a in plan.alternatives}
    assert tried == {1, 2, 4}


def test_no_recipe_and_no_sequence_of_choices_is_faster(plan: ShardedPlan) -> None:
    shop = _shop()
    among = configurations(4, 16, devices_per_node=4)
    space = shop.space(plan.cluster, among)
    fitting = [
        planned.seconds
        for c in among
        for planned in price_recipes(c, space.open(c))
        if planned.peak_bytes <= plan.budget_bytes
    ]
    assert fitting
    assert plan.seconds <= min(fitting)
    usual = stage_first(space, plan.budget_bytes).planned
    assert usual is None or plan.seconds <= usual.seconds


def test_round_trip_of_a_captured_plan(plan: ShardedPlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == plan


def test_same_inputs_same_plan(plan: ShardedPlan) -> None:
    assert str(_fit("3.2MB")) == str(plan)


def test_more_room_is_never_slower(plan: ShardedPlan) -> None:
    roomy = _fit("1GB")
    assert roomy.seconds <= plan.seconds
    assert roomy.step.schedule.is_plain


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"global_batch": 18}, "18 does not divide over 4 ranks; the nearest are 16 and 20"),
        ({"world_size": 12, "device": "A100-40GB"}, "12 devices do not divide into nodes of 8"),
        ({"precisions": ("fp8",)}, "unknown precision 'fp8'"),
        ({"link": "warp"}, "warp"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadCluster, match=reason):
        _fit("1GB", **options)


def test_what_fits_nowhere_says_how_many_devices_would_do() -> None:
    """Activations of one sample do not shrink with more devices, states do."""
    model, inputs = build()
    options = {"inputs": inputs, "device": "cpu", "global_batch": 2, "offload": False}
    with pytest.raises(InfeasibleBudget, match=r"Next: \d+ such devices would do") as caught:
        planner.fit(model, "1.3MB", world_size=2, **options)
    words = str(caught.value).split()
    ranks = int(words[words.index("such") - 1])
    assert planner.fit(model, "1.3MB", world_size=ranks, **options | {"global_batch": ranks}).fits
    assert "the least" in str(caught.value)


def test_the_host_of_a_node_holds_no_more_than_is_said(tmp_path: Path) -> None:
    model, inputs = build()
    said = {"inputs": inputs, "device": "A100-80GB", "global_batch": 2, "reserve": 0}
    plan = planner.fit(model, 1.075e9, world_size=2, offload="3MB", **said)
    assert isinstance(plan, ShardedPlan)
    assert plan.configuration.offload
    assert 1e6 < plan.host_bytes <= 3e6  # of two ranks
    fewer = {"bytes": plan.host_bytes - 2}  # those of some units
    less = planner.fit(model, 1.075e9, world_size=2, offload=fewer, **said)
    assert isinstance(less, ShardedPlan)
    assert 0 < less.host_bytes < plan.host_bytes
    assert less.peak_bytes <= 1.075e9
    assert re.search(r"states of \d of \d units", str(less))
    assert ", states on the host " in str(less)
    less.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == less
    with pytest.raises(InfeasibleBudget, match="5 such devices would do") as caught:
        planner.fit(model, 1.075e9, world_size=2, offload={"bytes": 1000}, **said)
    assert "more of a node's host (offload= says how much" in str(caught.value)


@pytest.mark.slow
def test_the_least_budget_that_is_named_works() -> None:
    model, inputs = build()
    options = {"inputs": inputs, "device": "cpu", "global_batch": 2, "offload": False}
    with pytest.raises(InfeasibleBudget) as caught:
        planner.fit(model, "1.3MB", world_size=2, **options)
    assert planner.fit(model, caught.value.least_bytes, world_size=2, **options).fits


def test_what_no_number_of_devices_can_hold_is_said() -> None:
    with pytest.raises(InfeasibleBudget, match="not even 65,536 such devices would do"):
        _fit("100KB", global_batch=4, offload=False)


def test_the_least_number_of_ranks() -> None:
    for least in (5, 6, 8, 9, 100):
        assert least_ranks(lambda n, least=least: n >= least, 4) == least  # type: ignore[misc]
    assert least_ranks(lambda _: False, 4) is None


def test_samples_are_cut_and_repeated() -> None:
    ids, mask = torch.arange(6).view(3, 2), torch.ones(1, 2)
    inputs = {"ids": ids, "mask": mask, "flag": True}
    assert samples_in(inputs) == 3
    assert with_samples(inputs, 3, 2)["ids"].tolist() == [[0, 1], [2, 3]]
    assert with_samples(inputs, 3, 4)["ids"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert with_samples(inputs, 3, 4)["mask"].shape == (1, 2)


def test_offload_and_precision_are_among_the_choices() -> None:
    options = {
        "precisions": ("float32", "bfloat16"),
        "device": "A100-40GB",
        "global_batch": 4,
        "reserve": 0,
    }
    plan = _fit("1.2GB", **options)
    seen = {a.configuration for a in plan.alternatives} | {plan.configuration}
    assert {c.precision for c in seen} == {"float32", "bfloat16"}
    assert {c.offload for c in seen} == {True, False}
    assert not any(
        a.configuration.offload for a in _fit("1.2GB", **options, offload=False).alternatives
    )


def test_host_memory_is_that_of_a_node() -> None:
    shop = _shop()
    c = Configuration(Strategy.FSDP, 4, 1, 4, 1, offload=True)
    one = shop.step(c, make_cluster("A100-40GB", 4)).host_bytes
    states = sum(p.numel() * 4 for p in shop.request.model.parameters())
    assert 4 * one >= 4 * states  # master weights, gradients, two moments


def test_the_command_line(tmp_path: Path) -> None:
    run, saved = CliRunner().invoke, str(tmp_path / "plan.json")
    arguments = ["--budget", "3.2MB", "--device", "cpu", "--global-batch", "16", "--export", saved]
    found = run(cli, ["fit", f"{__file__}:build", *arguments, "--world-size", "4", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["world_size"] == 4
    assert "Rejected" in run(cli, ["explain", saved]).output
    alone = run(cli, ["fit", f"{__file__}:build", *arguments])
    assert alone.exit_code == 2
    wrong = run(cli, ["fit", f"{__file__}:build", *arguments, "--world-size", "3"])
    assert wrong.exit_code == 2


@pytest.mark.filterwarnings("ignore")
def test_fewer_samples_than_a_model_takes_are_left_out() -> None:
    """A batch norm of rows wants two: what has one a rank is impossible, not the whole."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(2))
    )
    said = {"inputs": torch.randn(2, 16), "loss": lambda out: out.square().mean(), "reserve": 0}
    plan = planner.fit(model, "10MB", world_size=2, global_batch=8, device="cpu", **said)
    assert plan.configuration.micro_batch >= 2
    with pytest.raises(planner.InfeasibleBudget, match="The closest is"):
        planner.fit(model, "2KB", world_size=2, global_batch=8, device="cpu", **said)
    one = {**said, "inputs": torch.randn(1, 16)}
    with pytest.raises(planner.CaptureError, match="more than 1 value per channel"):
        planner.fit(model, "10MB", world_size=2, global_batch=2, device="cpu", **one)
