"""Methods side by side."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import planner
from planner import UnknownMethod
from planner.comparison import compare_graph
from planner.plans import Plan
from planner.solvers import SOLVERS, Limits
from tests.compiled import Broken, Net, measured_bytes
from tests.speaker import Speaker, batch, usual

MB = 10**6
QUICK = Limits(seconds=5)


def test_every_registered_method_has_a_row(captured: Any) -> None:
    found = compare_graph(captured.graph, 200 * MB, limits=QUICK)
    assert {row.method for row in found.rows} == set(SOLVERS)
    assert all(row.fits == (row.peak_bytes is not None) for row in found.rows)
    assert all(row.peak_bytes <= 200 * MB for row in found.rows if row.peak_bytes is not None)


def test_cheapest_first_and_what_does_not_fit_last(captured: Any) -> None:
    found = compare_graph(captured.graph, 200 * MB, limits=QUICK)
    costs = [row.seconds for row in found.rows if row.seconds is not None]
    assert costs == sorted(costs)
    assert [row.fits for row in found.rows] == sorted((r.fits for r in found.rows), reverse=True)
    assert not next(row for row in found.rows if row.method == "plain").fits


def test_gaps_are_to_the_best_bound_of_all(captured: Any) -> None:
    found = compare_graph(captured.graph, 200 * MB, ["blocks", "auto"], limits=QUICK)
    auto, blocks = found.rows
    assert found.bound_seconds == max(auto.bound_seconds, blocks.bound_seconds)
    # two attentions run again at best; every attention, mlp and activation but the last layer's
    assert (found.overhead(auto), found.gap(auto)) == pytest.approx((0.04, 0.0), abs=1e-6)
    assert (found.overhead(blocks), found.gap(blocks)) == pytest.approx((0.26, 0.22), abs=1e-6)


def test_an_impossible_budget_is_a_table_of_no(captured: Any) -> None:
    found = compare_graph(captured.graph, 60 * MB, ["auto", "plain"])
    assert not any(row.fits for row in found.rows)
    assert "plain: " in str(found)  # why not
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"][0]["fits"] is False


def test_a_plan_compares_on_its_own_graph(plan: Plan) -> None:
    found = plan.compare(["auto", "recompute_all"], limits=QUICK)
    assert found.budget_bytes == plan.budget_bytes
    assert found.plain_peak_bytes == plan.plain_peak_bytes


class Tower(nn.Module):
    """Repeated blocks with a loss."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))  # noqa: E731
        self.h = nn.ModuleList(block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = x + block(x)
        return x.square().mean()


def test_what_torch_runs_is_judged_as_torch_holds_it() -> None:
    found = planner.compare(
        Tower(), "1GB", inputs=torch.zeros(1024, 64), methods=["checkpoint", "blocks", "plain"]
    )
    assert {r.method: r.footing for r in found.rows} == {
        "checkpoint": "eager", "blocks": "plan", "plain": "plan",
    }  # fmt: skip
    assert found.eager_peak_bytes is not None
    by_method = {row.method: row for row in found.rows}
    assert by_method["checkpoint"].peak_bytes == found.eager_peak_bytes  # all fits: none again
    tight = planner.compare(
        Tower(), int(0.7 * found.eager_peak_bytes), inputs=torch.zeros(1024, 64),
        methods=["checkpoint", "auto"],
    )  # fmt: skip
    auto, checkpoint = tight.rows
    assert auto.method == "auto"
    assert (auto.footing, checkpoint.footing) == ("plan", "eager")
    assert checkpoint.fits
    assert "Peaks of checkpoint are eager mode's" in str(tight)
    assert tight.to_json()["rows"][1]["footing"] == "eager"


def test_without_the_eager_step_it_is_said_whose_peaks_they_are(captured: Any) -> None:
    found = compare_graph(captured.graph, 10**9, ["plain", "checkpoint"])
    assert {row.footing for row in found.rows} == {"plan"}
    assert "Peaks are a plan's" in str(found)


def test_unknown_methods_are_refused_before_any_work(captured: Any) -> None:
    said: list[str] = []
    with pytest.raises(UnknownMethod):
        compare_graph(captured.graph, 10**9, ["auto", "magic"], tell=said.append)
    assert said == []


def test_the_table_reads(captured: Any) -> None:
    lines = str(compare_graph(captured.graph, 300 * MB, ["plain"])).splitlines()
    assert lines[0] == (
        "Budget 300 MB (286 MiB); the plain step peaks at 247 MB (236 MiB) and takes 50.0 ms"
    )
    assert lines[2].split()[:6] == ["plain", "yes", "247", "MB", "plan", "+0.00%"]
    assert lines[3].startswith("Proven: at least +0.00% is necessary")


def test_compare_captures_a_model_once(make_net: Callable[[], nn.Module]) -> None:
    said: list[str] = []
    found = planner.compare(
        make_net(),
        "1GB",
        inputs=torch.zeros(64, 16),
        methods=["auto", "plain"],
        progress=said.append,
    )
    assert [row.fits for row in found.rows] == [True, True]
    assert sum(text.startswith("capturing Net") for text in said) == 1


def test_engines_are_set_beside_the_methods() -> None:
    model, x = Net(depth=1), torch.randn(256, 32)
    said = {"inputs": x, "optimizer": None, "limits": QUICK, "progress": "off"}
    found = planner.compare(model, "1GB", methods=["auto", "plain"], engines=["inductor"], **said)
    rows = {row.method: row for row in found.rows}
    assert all(row.fits for row in found.rows)
    planned, usual = rows["auto in inductor"], rows["inductor"]
    assert planned.footing == usual.footing == "inductor"
    assert usual.peak_bytes <= planned.peak_bytes  # that of a plan has a margin
    assert planned.seconds == usual.seconds
    assert found.overhead(planned) < 0
    assert found.gap(planned) == 0
    shares = [row for name, row in rows.items() if name.startswith("activation_memory_budget")]
    assert shares
    assert all(row.seconds >= usual.seconds for row in shares)
    assert "Held by inductor" in str(found)


@pytest.mark.slow
def test_a_compiler_with_checkpoints_holds_what_is_said_of_it() -> None:
    model, x = Net(depth=2), torch.randn(256, 32)
    said = {"inputs": x, "optimizer": None, "limits": QUICK, "progress": "off"}
    found = planner.compare(model, "1GB", methods=["plain"], engines=["inductor"], **said)
    rows = {row.method: row for row in found.rows}
    said_bytes = rows["checkpoint in inductor"].peak_bytes
    assert rows["checkpoint in inductor"].seconds > rows["inductor"].seconds
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, options={"allow_buffer_reuse": False})
    assert measured_bytes(compiled, x) == pytest.approx(said_bytes, rel=0.02)


@pytest.mark.slow
def test_engines_are_set_beside_in_chunks() -> None:
    words = 4001
    model = Speaker(usual, words, 16)
    said = {"inputs": batch(words, 4, 64), "optimizer": None, "limits": QUICK, "progress": "off"}
    budget = 4 * 64 * words * 2  # half of what the logits hold
    rows = {
        chunks: {
            row.method: row
            for row in planner.compare(
                model, budget, methods=["auto"], engines=["inductor"], loss_chunks=chunks, **said
            ).rows
        }
        for chunks in (1, 8)
    }
    assert not rows[1]["auto in inductor"].fits
    assert rows[8]["auto in inductor"].fits
    assert rows[8]["auto"].fits
    assert not rows[8]["inductor"].fits  # which is the step as it is


def test_what_an_engine_beside_refuses_is_said_before_any_search() -> None:
    said: list[str] = []
    with pytest.raises(planner.CaptureError, match="not take the step whole"):
        planner.compare(
            Broken(depth=2),
            "1GB",
            methods=["auto"],
            engines=["inductor"],
            inputs=torch.randn(256, 32),
            progress=said.append,
        )
    assert not any(text.startswith("solving") for text in said)


def test_an_unknown_engine_beside_is_refused() -> None:
    with pytest.raises(planner.UnknownEngine, match="valid engines"):
        planner.compare(
            Tower(), "1GB", methods=["plain"], engines=["xla"], inputs=torch.ones(2, 64)
        )
