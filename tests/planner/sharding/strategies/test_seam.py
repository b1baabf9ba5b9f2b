"""The seam of strategies: one more takes one file, and nothing else decides by which one it is."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import planner
from planner.graphs import Kind, Phase, plain_schedule, simulate
from planner.graphs.hardware.cluster import cluster
from planner.output.sharded_plan_text import sharded_summary
from planner.plan.configuration import Configuration
from planner.plan.strategy import STRATEGIES, Strategy, register_strategy, strategy_of
from planner.plans import ShardedPlan
from planner.sharding.captures import Captures
from planner.sharding.configurations import configurations
from planner.sharding.fit_sharded import plan_found
from planner.sharding.pricing import price_recipes
from planner.sharding.search import explore
from planner.sharding.stage_first import stage_first
from planner.solvers import minimum_budget
from tests import house
from tests.asked import request
from tests.planner.sharding.assembled import resident, step
from tests.planner.sharding.blocks import Decoder, batch
from tests.planner.sharding.strategies.alone import ALONE

STRATEGY_FILES = ("planner.sharding.strategies", "planner.plan.strategy")
FOREIGN = "planner.integrations"  # knows the strategies of trainers, none of ours
SOURCES = {m: p for m, p in house.sources().items() if not m.startswith((*STRATEGY_FILES, FOREIGN))}
WRAPPERS = {"DistributedDataParallel", "ZeroRedundancyOptimizer", "fully_shard", "FSDPModule"}


def decisions(tree: ast.AST) -> list[str]:
    """Return what a file decides by the name or the identity of a strategy."""
    return [ast.unparse(node) for node in ast.walk(tree) if _decides(node)]


def _decides(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        told = [_is_strategy(side) for side in (node.left, *node.comparators)]
        return any(told) and not all(told)
    if isinstance(node, ast.Match):
        return _is_strategy(node.subject)
    if isinstance(node, ast.Subscript):
        return _is_strategy(node.slice)
    if isinstance(node, ast.Attribute):
        return ast.unparse(node.value) == "Strategy" and node.attr.isupper()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "get" and any(map(_is_strategy, node.args))
    return isinstance(node, ast.Constant) and node.value in ("ddp", "zero1", "fsdp")


def _is_strategy(node: ast.AST) -> bool:
    """Tell a strategy or its name from what it was asked."""
    if isinstance(node, ast.Attribute):
        named = node.attr in ("name", "label", "title", "value")
        return node.attr == "strategy" or (named and _is_strategy(node.value))
    if isinstance(node, ast.Name):
        return node.id == "strategy"
    return any(map(_is_strategy, ast.iter_child_nodes(node)))


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_else_decides_by_strategy(module: str) -> None:
    assert decisions(house.tree(SOURCES[module])) == []
    names = {name.rpartition(".")[2] for name in house.imported(SOURCES[module])}
    assert not names & WRAPPERS


@pytest.mark.parametrize(
    "code",
    [
        "c.strategy is Strategy.FSDP",
        "c.strategy is not chosen",
        "plan.configuration.strategy.value == 'x'",
        "strategy.name in names",
        "{one: 0, two: 1}[c.strategy]",
        "kinds.get(c.strategy, 'other')",
        "'fsdp'",
    ],
)
def test_a_decision_is_seen(code: str) -> None:
    assert decisions(ast.parse(code))


def test_asking_is_no_decision() -> None:
    for code in ("c.strategy.stages[-1].number == most", "(a.strategy, 1) == (b.strategy, n)"):
        assert not decisions(ast.parse(code))


def test_the_floors_below_do_not_know_the_strategies() -> None:
    for module, used in house.arrows().adj.items():
        if "planner.sharding.strategies" in {m.rpartition(".")[0] for m in used}:
            assert module.startswith("planner.sharding.strategies")


def test_importing_all_of_them_loads_no_torch() -> None:
    code = (
        "import sys; from planner.plan.strategy import STRATEGIES; "
        "assert 'torch' not in sys.modules; print(STRATEGIES)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Strategy.FSDP" in found.stdout


def test_names() -> None:
    assert list(STRATEGIES) == ["ddp", "fsdp", "zero1"]
    assert strategy_of("fsdp") is Strategy.FSDP
    with pytest.raises(ValueError, match="already registered"):
        register_strategy(replace(ALONE, name="ddp"))
    with pytest.raises(ValueError, match=r"unknown strategy 'zero3'; valid .*: ddp, fsdp, zero1"):
        strategy_of("zero3")


def test_a_strategy_survives_processes_as_itself() -> None:
    c = Configuration(Strategy.FSDP, 8)
    assert pickle.loads(pickle.dumps(c)) == c
    assert pickle.loads(pickle.dumps(c)).strategy is Strategy.FSDP


@pytest.fixture
def alone() -> Iterator[Strategy]:
    yield register_strategy(ALONE)
    del STRATEGIES["alone"]


def test_its_configurations(alone: Strategy) -> None:
    texts = [str(c) for c in configurations(1, 2, devices_per_node=1, offload=False)]
    assert [t for t in texts if t.startswith("Alone")] == [
        "Alone, batch 1 x 2, float32",
        "Alone, batch 2 x 1, float32",
    ]
    assert not any(c.strategy is alone for c in configurations(2, 2, devices_per_node=2))
    with pytest.raises(ValueError, match="one program has one rank"):
        Configuration(alone, 2)


def test_its_step_is_that_of_ddp_without_communication(alone: Strategy) -> None:
    for device in ("cpu", "A100-80GB"):
        found = step(Configuration(alone, 1, micro_batch=2), device)
        ddp = step(Configuration(Strategy.DDP, 1, micro_batch=2), device)
        mine, other = (simulate(s.graph, plain_schedule(s.graph)) for s in (found, ddp))
        ops = (op for op in ddp.graph.ops if op.phase is Phase.COMMUNICATION)
        assert mine.seconds == pytest.approx(other.seconds - sum(op.seconds for op in ops))
        assert resident(found, Kind.PARAMETER) == resident(ddp, Kind.PARAMETER)
        assert resident(found, Kind.OPTIMIZER) == resident(ddp, Kind.OPTIMIZER)
        assert resident(found, Kind.GRADIENT) == 0
        assert mine.peak_bytes < other.peak_bytes


@pytest.fixture
def plan(alone: Strategy) -> ShardedPlan:
    """Search among what it can be, at the least budget of one sample."""
    with torch.device("meta"):
        asked = request(Decoder(3), inputs=batch(), device="cpu", optimizer="adamw")
    shop, devices = Captures(asked), cluster("cpu", 1)
    among = [c for c in configurations(1, 4, devices_per_node=1) if c.strategy is alone]
    space = shop.space(devices, among)
    budget_bytes = int(1.05 * minimum_budget(space.open(among[0]).graph).least_bytes)
    assert any(True for _ in price_recipes(among[0], space.open(among[0])))
    assert stage_first(space, 10**9).stage == 0
    return ShardedPlan.of(plan_found(shop, devices, explore(space, budget_bytes), budget_bytes))


def test_its_plan_is_told_saved_and_exported(plan: ShardedPlan, tmp_path: Path) -> None:
    assert plan.fits
    assert plan.stage == 0
    assert "stage 0, one program, micro-batch 4 x 1" in str(plan)
    assert "in this program" in str(plan)
    assert "nothing sharded, full checkpointing" in plan.explain()
    assert sharded_summary(plan)["strategy"] == "alone"
    plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())
    again = planner.load(tmp_path / "plan.json")
    assert again == plan
    assert str(again) == str(plan)
    plan.export(tmp_path / "deepspeed.json", "deepspeed")
    zero = json.loads((tmp_path / "deepspeed.json").read_text())["zero_optimization"]
    assert zero == {"stage": 0}
    for launcher in ("accelerate", "fsdp2"):
        with pytest.raises(planner.BadRequest, match="'alone' has no Launch: What launchers"):
            plan.export(tmp_path / "out", launcher)


def test_a_file_of_a_strategy_that_is_gone_says_which_there_are(
    plan: ShardedPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.save(tmp_path / "plan.json")
    monkeypatch.delitem(STRATEGIES, "alone")
    with pytest.raises(planner.InvalidPlan, match=r"unknown strategy 'alone'; valid .*: ddp, fsdp"):
        planner.load(tmp_path / "plan.json")
