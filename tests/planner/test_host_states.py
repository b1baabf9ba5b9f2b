"""Planning with the optimizer's states on the host: what is chosen, said, saved and refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import planner
from planner.byte_sizes import format_bytes
from planner.graphs import Kind, plain_schedule, simulate
from planner.graphs.capture.optimizer_parts import StatePart, state_parts
from planner.graphs.hardware.devices import cpu, device
from planner.graphs.hardware.host_tier import HostTier
from planner.host_budget import solve_within_host
from planner.host_states import parted_bytes, parted_seconds
from planner.planning_again import plan_again
from planner.request import request_of
from planner.solvers import Limits
from tests.forgery import edit
from tests.planner.running.test_states_on_host import (
    HOST,
    SAID,
    adamw,
    batches,
    build,
    mean_square,
    tight,
)
from tests.strategies import unet


def said(**more: Any) -> dict[str, Any]:
    return {**SAID, "inputs": batches(1)[0], **more}


@pytest.fixture(scope="module")
def plan() -> planner.Plan:
    return tight("adamw")


def test_states_move_only_where_that_pays(plan: planner.Plan) -> None:
    assert plan.fits
    assert plan.states is not None
    assert plan.plain_peak_bytes > plan.budget_bytes
    assert plan.overhead > 0
    assert plan.bound_seconds <= plan.seconds
    for offload in (None, {"bytes_per_second": 4e9}):
        with pytest.raises(planner.InfeasibleBudget):
            planner.fit(build(), plan.budget_bytes, offload=offload, **said())
    whole = planner.fit(build(), "1GB", offload=HOST, **said())
    assert whole.states is None
    assert whole.overhead == 0
    assert "the optimizer's states may wait on the host, and do not" in " ".join(str(whole).split())


def test_a_plan_that_moves_states_alone_says_so(plan: planner.Plan) -> None:
    text = " ".join(str(plan).split())
    assert plan.schedule.is_plain
    assert "among shares of the optimizer's states on the host: beside them nothing needs" in text
    assert "optimal: nothing needs to be recomputed" not in text


def test_the_text_keeps_states_and_values_apart(plan: planner.Plan) -> None:
    assert not plan.schedule.moves
    text = " ".join(str(plan).split())
    need_not = "values may move to the host beside the optimizer's states (offload=), and need not"
    assert f"{need_not}: the step fits with those there" in text
    assert "states of the optimizer move to" in text
    assert "values move" not in text
    rows = str(plan).splitlines()
    plain = next(row for row in rows if row.startswith("  plain, states moved"))
    assert "plain total" not in text
    most = format_bytes(plan.plain_trace.peak_bytes)
    assert most in plain
    assert most != format_bytes(plan.plain_peak_bytes)
    assert f"Plain peak {format_bytes(plan.eager_peak_bytes or 0)}" in text
    kept = str(planner.fit(build(), "1GB", offload=HOST, **said()))
    assert "plain total" in kept


def test_what_each_choice_would_cost_is_said_of_the_step_with_all_states_on_the_device() -> None:
    graph, host = unet(3), HostTier(50.0, 50.0)
    budget = simulate(graph, plain_schedule(graph)).peak_bytes * 8 // 10
    request = request_of(build(), {**SAID, "inputs": batches(1)[0]})
    said = []
    for kept in (None, graph.seconds / 2):
        moved = solve_within_host(graph, budget, request, host, kept_seconds=kept)
        assert moved.solution.schedule is not None
        said.append(moved.remarks[0])
    plain, beside = (
        [float(percent) for percent in re.findall(r"\+([\d.]+)% of the plain step", text)]
        for text in said
    )
    assert len(plain) == len(beside) == 2
    assert beside == pytest.approx([100 + 2 * percent for percent in plain], abs=0.05)
    assert said[1].startswith("beside the optimizer's states, recomputing alone would take")


def test_fewer_states_move_where_that_is_enough(plan: planner.Plan) -> None:
    less = tight("adamw", share=0.3)
    assert less.states is not None
    assert plan.states is not None
    assert less.states.moved_bytes < plan.states.moved_bytes
    assert less.seconds < plan.seconds


def test_below_what_works_the_error_knows_the_states(plan: planner.Plan) -> None:
    with pytest.raises(planner.InfeasibleBudget) as with_states:
        planner.fit(build(), "100KB", offload=HOST, **said())
    with pytest.raises(planner.InfeasibleBudget) as without:
        planner.fit(build(), "100KB", **said())
    assert with_states.value.least_bytes <= plan.budget_bytes < without.value.least_bytes
    at_least = planner.fit(build(), with_states.value.least_bytes, offload=HOST, **said())
    assert at_least.fits


def test_the_text_the_file_and_another_size(plan: planner.Plan, tmp_path: Path) -> None:
    text = " ".join(str(plan).split())
    assert "States on the host: " in text
    assert "plan.offload_states(optimizer, model)" in text
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == plan
    edit(tmp_path / "plan.json", lambda body: body["states"].update(moved_parts=99))
    with pytest.raises(planner.InvalidPlan, match="expected at least one"):
        planner.load(tmp_path / "plan.json")


def test_planned_again_it_keeps_them(plan: planner.Plan) -> None:
    from planner.graphs.capture.call_arguments import arguments_of

    again = plan_again(plan, build(), arguments_of(batches(1)[0], None), plan.loss)
    assert again.states is not None
    assert plan.states is not None
    assert again.states.parts == plan.states.parts
    assert again.peak_bytes == plan.peak_bytes


def test_what_it_does_not_go_with_is_refused_by_name(plan: planner.Plan) -> None:
    for optimizer in (None, "sgd"):
        with pytest.raises(planner.BadRequest, match="and it has none"):
            planner.fit(build(), plan.budget_bytes, offload=HOST, **said(optimizer=optimizer))
    with pytest.raises(planner.BadRequest, match="expected True or False"):
        planner.fit(build(), "1GB", offload={"states": "yes"}, **said())


def test_the_curve_is_below_that_with_all_states_on_the_device(plan: planner.Plan) -> None:
    curve = planner.pareto(build(), points=3, heuristics=True, offload=HOST, **said())
    without = planner.pareto(build(), points=3, **said())
    assert curve.least_bytes < without.least_bytes
    assert curve.plain_bytes == without.plain_bytes
    assert curve.points[-1].overhead == 0
    assert [p.seconds for p in curve.points] == sorted(p.seconds for p in curve.points)[::-1]
    assert curve.moved_bytes is not None
    assert plan.states is not None
    assert curve.moved_bytes[0] >= plan.states.moved_bytes
    assert curve.moved_bytes[-1] == 0
    found = curve.plan(plan.budget_bytes)
    assert found.peak_bytes <= plan.budget_bytes
    assert found.states is not None
    assert found.bound_seconds <= found.seconds
    assert found.plain_peak_bytes == plan.plain_peak_bytes
    assert "plan.offload_states(optimizer, model)" in " ".join(str(found).split())
    with pytest.raises(planner.InfeasibleBudget, match="known to work is"):
        curve.plan(curve.least_bytes - 1)


def test_methods_side_by_side(plan: planner.Plan) -> None:
    few = ["plain", "offload", "offload_all"]
    table = planner.compare(build(), plan.budget_bytes, methods=few, offload=HOST, **said())
    rows = {row.method: row for row in table.rows}
    assert rows["offload"].fits
    assert not rows["offload_all"].fits
    assert not rows["plain"].fits


@pytest.mark.slow
def test_a_batch_that_does_not_fit_with_all_states_on_the_device(plan: planner.Plan) -> None:
    told = {k: v for k, v in said().items() if k != "inputs"}
    told |= {"inputs": lambda n: batches(1)[0][:1].expand(n, -1), "max_overhead": 9.0}
    told |= {"limits": Limits(0.2)}
    larger = planner.max_batch(build(), plan.budget_bytes, offload=HOST, **told)
    assert larger.plain_batch == 0
    assert larger.batch >= len(batches(1)[0])
    assert larger.plan.states is not None
    with pytest.raises(planner.InfeasibleBudget):
        planner.max_batch(build(), plan.budget_bytes, **told)


def test_parts_are_the_whole_and_hold_what_they_say() -> None:
    weights = dict(build().named_parameters())
    for optimizer in ("adamw", adamw(list(weights.values()))):
        parts = state_parts(weights, optimizer, cpu(), count=5)
        assert [n for part in parts for n in part.parameters] == list(weights)
        assert len(parts) <= 5
        assert sum(p.state_bytes for p in parts) == sum(8 * w.numel() + 4 for w in weights.values())


def test_copies_hide_behind_what_is_computed_and_no_more() -> None:
    parts = [StatePart((str(k),), 100, 7, 1.0) for k in range(10)]
    quick, slow = HostTier(1e6, 1e6), HostTier(10.0, 10.0)
    assert parted_seconds(parts, 10, quick) == pytest.approx(10.0, rel=1e-3)
    assert parted_seconds(parts, 10, slow) >= 100.0  # each direction copies for that long
    times = [parted_seconds(parts, count, slow) for count in range(11)]
    assert times == sorted(times)
    assert [parted_bytes(parts, count) for count in (0, 1, 2, 3, 10)] == [7, 107, 207, 307, 307]


@pytest.mark.slow
def test_verify_measures_it() -> None:
    found = planner.verify(build(), tight("adamw"), batches(1)[0], loss=mean_square)
    assert found.fits


@pytest.mark.slow
def test_a_card_on_which_states_alone_do_not_fit() -> None:
    """Llama with the widths of 1B: its states are more than what the budget has beside weights."""
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=4,
        num_attention_heads=32, num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model: nn.Module = transformers.LlamaForCausalLM(config).train()
        ids = torch.zeros(1, 512, dtype=torch.long)
    given: dict[str, Any] = {
        "inputs": {"input_ids": ids, "labels": ids},
        "device": "A100-80GB",
        "optimizer": "adamw",
        "progress": "off",
        "limits": Limits(20.0),
    }
    plain = planner.fit(model, "80GB", **given)
    held = sum(v.size_bytes for v in plain.graph.values if v.kind is Kind.OPTIMIZER)
    budget = int(plain.plain_peak_bytes - 0.5 * held)
    assert device("A100-80GB").host_link
    plan = planner.fit(model, budget, offload={"states": True}, **given)
    assert plan.states is not None
    assert plan.fits


def test_a_limit_that_the_states_fill(plan: planner.Plan) -> None:
    """Nothing else may move then, and the file is no larger than was said."""
    assert plan.states is not None
    room = plan.states.room_bytes
    limited = planner.fit(build(), plan.budget_bytes, offload={**HOST, "bytes": room}, **said())
    assert limited.states is not None
    assert limited.states.room_bytes <= room
    with pytest.raises(planner.InfeasibleBudget, match="which is room for none of the optimizer's"):
        planner.fit(build(), plan.budget_bytes, offload={**HOST, "bytes": "1KB"}, **said())


def test_an_optimizer_of_some_parameters_or_of_none(plan: planner.Plan) -> None:
    model = build()
    some = adamw(list(model[4:].parameters()))  # type: ignore[index]
    host = {**HOST, "bytes": "1GB"}
    half = planner.fit(model, "1GB", offload=host, **said(optimizer=some))
    assert half.fits
    other = adamw(list(build().parameters()))
    with pytest.raises(planner.PlannerError, match=r"steps none|none of"):
        planner.fit(model, "1GB", offload=host, **said(optimizer=other))
