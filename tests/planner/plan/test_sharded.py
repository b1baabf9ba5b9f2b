"""The sharded plan as a value, as a file and as text, made by the search over hand-made steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import planner
from planner import InvalidPlan, ShardedPlan
from planner.cli import cli
from planner.graphs import Graph, Op, Phase, Value, plain_schedule
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.sharded_step_plan import UnitKind
from planner.plan.strategy import Strategy
from planner.plans import Plan, load_plan
from planner.sharding.configurations import configurations
from planner.sharding.reasons import alternatives
from planner.sharding.search import explore
from planner.sharding.space import Space
from planner.solvers import Limits, Status
from tests.forgery import edit
from tests.sharded_steps import Sizes, step

BUDGET = 700


def _plan(sizes: Sizes, budget: int = BUDGET) -> ShardedPlan:
    among = configurations(8, 32, devices_per_node=8)
    space = Space(among, lambda _: 0.0, lambda c: step(c, sizes))
    found = explore(space, budget, limits=Limits(gap=0.0))
    assert found.best is not None
    ops = (Op("f", "f", (), (0,), 1.0), Op("b", "b", (0,), (1,), 2.0, phase=Phase.BACKWARD))
    kind = Graph(ops, (Value("x", 1), Value("y", 1)), frozenset({1}), "Block")
    one = Plan(
        graph=found.best.graph,
        schedule=found.best.schedule,
        budget_bytes=budget,
        status=Status.OPTIMAL,
        bound_seconds=found.bound_seconds,
        method="auto",
        signature={"model": "Hand"},
        device="A100-40GB",
        optimizer="adamw",
    )
    return ShardedPlan(
        step=one,
        configuration=found.best.configuration,
        cluster=cluster("A100-40GB", 8),
        units=tuple(replace(u, schedule=plain_schedule(kind)) for u in found.best.units),
        kinds=(UnitKind(kind, {"model": "Block"}),),
        alternatives=alternatives(found, budget),
        host_bytes=found.best.host_bytes,
    )


@pytest.fixture(scope="module")
def plan() -> ShardedPlan:
    return _plan(Sizes())


@pytest.fixture
def file(plan: ShardedPlan, tmp_path: Path) -> Path:
    plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_round_trip(plan: ShardedPlan, file: Path) -> None:
    again = planner.load(file)
    assert again == plan
    assert str(again) == str(plan)
    assert isinstance(again, ShardedPlan)
    assert again.explain() == plan.explain()


def test_numbers_agree_with_each_other(plan: ShardedPlan) -> None:
    assert plan.fits
    assert plan.seconds_per_sample * plan.configuration.global_batch == pytest.approx(plan.seconds)
    assert plan.bound_seconds_per_sample <= plan.seconds_per_sample
    assert plan.gap == pytest.approx(0.0)


_ONE_STEP = {"actions": ["compute"], "action": [0], "index": [1]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p["step"].update(peak_bytes=1), "states a peak of"),
        (lambda p: p["configuration"].update(shard_ranks=3), "cluster has 8"),
        (lambda p: p["configuration"].update(precision="fp8"), "unknown precision"),
        (lambda p: p["cluster"].update(world_size=12), "12"),
        (lambda p: p["units"][0].update(kind=7), "names kind 7"),
        (lambda p: p["units"][0].update(steps=_ONE_STEP), "not live"),
        (lambda p: p["units"][0].pop("keep_gathered"), "field 'units.0.keep_gathered'"),
        (lambda p: p["alternatives"][0].pop("reason"), "reason"),
        (lambda p: p.update(extra=1), "field 'extra'"),
    ],
)
def test_forged_files(file: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    edit(file, change)
    with pytest.raises(InvalidPlan, match=reason):
        planner.load(file)


def test_unsealed_edits_and_truncation(file: Path) -> None:
    text = file.read_text()
    file.write_text(
        text.replace('"shard_ranks":', '"shard_ranks": ', 1).replace("true", "false", 1)
    )
    with pytest.raises(InvalidPlan):
        planner.load(file)
    file.write_text(text[:-40])
    with pytest.raises(InvalidPlan):
        planner.load(file)


def test_a_sharded_plan_is_not_taken_for_another(file: Path) -> None:
    with pytest.raises(InvalidPlan, match=r"plan for 8 ranks.*mesh"):
        load_plan(file)


def test_a_cluster_of_another_size_is_refused(plan: ShardedPlan) -> None:
    with pytest.raises(ValueError, match="8 ranks, the cluster has 16"):
        replace(plan, cluster=cluster("A100-40GB", 16))


def test_text_answers_first(plan: ShardedPlan) -> None:
    lines = str(plan).splitlines()
    assert lines[0].startswith("Fits: peak")
    assert all(len(line) <= 100 for line in lines)
    words = ("Proven", "Chosen", "stage", "Rejected", "reserve", "kept free", "host memory")
    assert all(word in str(plan) for word in words)


def test_explanation_has_every_alternative_and_its_reason(plan: ShardedPlan) -> None:
    among = configurations(8, 32, devices_per_node=8)
    others = {a.configuration for a in plan.alternatives if not a.recipe}
    assert others == set(among) - {plan.configuration}
    assert all(a.reason for a in plan.alternatives)
    text = plan.explain()
    assert all(str(c) in text for c in others)
    assert all(a.recipe in text for a in plan.alternatives)
    assert "no fit" in text
    assert "slower: " in text


def test_the_optimizer_is_named_where_it_binds() -> None:
    """Temporaries of the optimizer fill the device under DDP: no recomputation helps there."""
    plan = _plan(Sizes(temporaries=2000, activation=2), budget=1300)
    rejected = [a for a in plan.alternatives if a.configuration.strategy is Strategy.DDP]
    assert all(
        a.reason.endswith("peak is in optimizer.step; recomputation cannot help") for a in rejected
    )
    assert all(a.peak_bytes is not None and a.peak_bytes > 1300 for a in rejected)


def test_model_states_are_named_where_they_alone_are_too_much() -> None:
    plan = _plan(Sizes(weight=1000, activation=2), budget=4000)
    ddp = next(a for a in plan.alternatives if a.configuration.strategy is Strategy.DDP)
    assert ddp.reason.startswith("model states alone hold")
    assert ddp.seconds_per_sample == float("inf")


def test_stages_are_named() -> None:
    plan = _plan(Sizes())
    c = Configuration(Strategy.FSDP, 8, 1, 1, 4)
    kept = tuple(replace(u, keep_gathered=True) for u in plan.units)
    gone = tuple(replace(u, keep_gathered=False) for u in plan.units)
    assert replace(plan, configuration=c, units=kept).stage == "2"
    assert replace(plan, configuration=c, units=gone).stage == "3"
    assert replace(plan, configuration=c, units=(*gone[1:], kept[0])).stage == "2/3"
    assert replace(plan, configuration=Configuration(Strategy.ZERO1, 8, 1, 1, 4)).stage == "1"
    assert replace(plan, configuration=Configuration(Strategy.DDP, 1, 8, 1, 4)).stage == "0"


def test_the_command_line_explains_and_shows(plan: ShardedPlan, file: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(cli, ["explain", str(file)]).output.strip() == plan.explain().strip()
    reasons = json.loads(run(cli, ["explain", str(file), "--json"]).output)["alternatives"]
    assert len(reasons) == len(plan.alternatives)
    shown = run(cli, ["show", str(file), "--json", "--export", str(tmp_path / "page.html")])
    answers = json.loads(shown.output)
    assert answers["stage"] == plan.stage
    assert answers["seconds_per_sample"] == plan.seconds_per_sample
    assert "Rejected" in (tmp_path / "page.html").read_text()
    wrong = run(cli, ["verify", "x.py:f", str(file)])
    assert wrong.exit_code == 2


def test_plans_share_one_vocabulary(plan: ShardedPlan) -> None:
    """What a plan for one device says, one for several says by the same name, of one type."""
    same = [
        *("budget_bytes", "peak_bytes", "plain_peak_bytes", "seconds", "plain_seconds"),
        *("overhead", "bound_seconds", "bound_overhead", "gap", "fits", "status", "stage"),
        *("memory", "binding", "recomputed"),
    ]
    single = Plan.of(plan.step)
    assert all(type(getattr(plan, n)) is type(getattr(single, n)) for n in same)
    assert plan.gap == single.gap
    verbs = ("apply", "save", "export", "report", "explain", "__str__", "_repr_html_")
    assert all(callable(getattr(p, verb)) for p in (plan, single) for verb in verbs)
    assert len(repr(plan)) < 300
