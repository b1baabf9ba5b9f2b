"""The report as text; golden files show what people see."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from planner import Status
from planner.graphs import Graph, Schedule, plain_schedule, schedule_from_order
from planner.output.folding import fold, fold_paths
from planner.output.layout import WIDTH
from planner.output.plan_text import ROWS, render, summary
from planner.plans import Plan

Golden = Callable[[str, str], None]


def test_golden_recomputing(plan: Plan, golden: Golden) -> None:
    golden("recomputing.txt", render(plan) + "\n")


def test_golden_plain(graph: Graph, make_plan: Callable[..., Plan], golden: Golden) -> None:
    plan = make_plan(
        schedule=plain_schedule(graph),
        status=Status.OPTIMAL,
        bound_seconds=graph.seconds,
        optimizer=None,
        costs="measured",
        message="nothing to do",
    )
    golden("plain.txt", render(plan) + "\n")


def test_golden_does_not_fit(plan: Plan, golden: Golden) -> None:
    golden("does_not_fit.txt", render(replace(plan, budget_bytes=10**8)) + "\n")


def test_the_answer_comes_first(plan: Plan) -> None:
    first, *_ = str(plan).splitlines()
    assert first == "Fits: peak 147 MB (140 MiB) of a 148 MB (141 MiB) budget"


def test_lines_stay_short_whatever_the_names(plan: Plan) -> None:
    ops = tuple(replace(op, module=f"model.{'deep.' * 40}{op.module}") for op in plan.graph.ops)
    text = render(replace(plan, graph=replace(plan.graph, ops=ops)))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "h.0-2.attn" in text  # a path keeps its end


def test_no_colour_codes(plan: Plan) -> None:
    assert "\x1b" not in str(plan)


def test_identical_layers_fold_into_one_row(plan: Plan) -> None:
    rows = fold(plan.graph, plan.recomputed)
    assert [(f.modules, f.target, f.count) for f in rows] == [
        ("h.0-2.attn", "softmax", 3),
        ("h.0-2.mlp", "mm", 3),
    ]
    assert sum(f.saved_bytes for f in rows) == sum(r.saved_bytes for r in plan.recomputed)


@pytest.mark.parametrize(
    ("paths", "folded"),
    [
        (["h.0.attn"], "h.0.attn"),
        (["h.10.attn", "h.2.attn", "h.9.attn"], "h.2,9-10.attn"),
        (["layers.0.experts.1", "layers.1.experts.1"], "layers.0-1.experts.1"),
        (["", ""], ""),
    ],
)
def test_fold_paths(paths: list[str], folded: str) -> None:
    assert fold_paths(paths) == folded


def test_a_long_table_adds_up_what_it_leaves_out(plan: Plan) -> None:
    ops = tuple(replace(op, module=f"m{'xyz'[i % 3]}{i}") for i, op in enumerate(plan.graph.ops))
    order = [i for n in plan.schedule.order for i in ([n, n] if n < 14 else [n])]
    graph = replace(plan.graph, ops=tuple(replace(op, recomputable=True) for op in ops))
    text = render(replace(plan, graph=graph, schedule=schedule_from_order(graph, order)))
    rows = len(re.findall(r"^  m[xyz]\d+ .* x\d", text, re.MULTILINE))
    assert rows == ROWS
    assert "  2 more rows" in text  # 14 ops run again, in 14 places


def test_optimizer_at_the_peak_is_said(plan: Plan) -> None:
    ops = (*plan.graph.ops[:-1], replace(plan.graph.ops[-1], workspace_bytes=10**9))
    text = render(replace(plan, graph=replace(plan.graph, ops=ops)))
    assert "the peak is in the optimizer step, where recomputing layers cannot lower it" in text


def test_a_peak_in_the_loss_is_said(plan: Plan) -> None:
    loss = next(i for i, op in enumerate(plan.graph.ops) if op.name == "loss_backward")
    ops = list(plan.graph.ops)
    ops[loss] = replace(ops[loss], workspace_bytes=10**9, source="train.py:7")
    text = render(replace(plan, graph=replace(plan.graph, ops=tuple(ops))))
    assert "the peak is outside every submodule, at train.py:7 (often the loss)" in text
    assert "outside every submodule" not in render(plan)


def test_summary_is_the_plan(plan: Plan) -> None:
    answers = summary(plan)
    for name in ("peak_bytes", "seconds", "overhead", "gap", "fits", "method"):
        assert answers[name] == getattr(plan, name)
    assert answers["memory"]["backward"]["activation"] == 85 * 10**6
    assert answers["binding"]["op"] == "backward_3"


def test_report_of_an_empty_schedule_is_refused(plan: Plan) -> None:
    with pytest.raises(ValueError, match="never runs"):
        render(replace(plan, schedule=Schedule(())))
