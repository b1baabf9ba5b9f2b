"""``loss_chunks=``: what a plan says, holds and computes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn

import planner
from planner import allocator_budget, planning
from planner.cli import cli
from planner.graphs import Graph
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.late_tensors import LateTensor
from planner.request import Request
from planner.solvers import Solution, Status
from planner.solvers.given_order import STOPPED
from tests.speaker import distance, gradients

WORDS, ROWS, LENGTH = 3001, 4, 32


def language_model() -> nn.Module:
    """GPT-2, whose head is tied; it returns its logits beside the loss."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=WORDS, n_positions=LENGTH, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    made: nn.Module = transformers.GPT2LMHeadModel(config).train()
    return made


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :5] = -100
    return {"input_ids": ids, "labels": labels}


SAID: dict[str, Any] = {"inputs": batch(), "optimizer": None, "logits": "when_read"}


@pytest.fixture(scope="module")
def plan() -> planner.Plan:
    return planner.fit(language_model(), "2MB", loss_chunks=8, **SAID)


def test_the_measured_peak_falls_as_predicted(plan: planner.Plan) -> None:
    model = language_model()
    whole = planner.fit(model, "1GB", inputs=batch(), optimizer=None)
    held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)
    peaks: list[int] = []
    for each in (whole, plan):
        planned = each.apply(model)
        gradients(planned, batch())
        model.zero_grad(set_to_none=True)

        def step(planned: nn.Module = planned) -> None:
            output = planned(**batch())
            output.loss.backward()

        peaks.append(measure_peak(step).peak_bytes)
        model.zero_grad(set_to_none=True)
        assert abs(peaks[-1] / (each.peak_bytes - held) - 1) < 0.01
    assert peaks[1] < peaks[0] / 3


@pytest.mark.parametrize(("form", "most"), [("A", 1e-6), ("B", 1e-5)])
def test_gradients(form: str, most: float) -> None:
    model = language_model()
    name = f"loss_chunks 8 {form} when_read"
    said = {n: v for n, v in SAID.items() if n != "logits"}
    made = planner.fit(model, "1GB", rewrites=[name], **said)
    assert made.rewrite == name
    planned = made.apply(model)
    for inputs in (batch(), batch(3)):  # a smaller one is served, too
        loss, wanted = gradients(model, inputs)
        found, others = gradients(planned, inputs)
        assert abs(found - loss) <= 1e-6 * loss
        assert distance(others, wanted) < most


def test_one_chunk_is_the_step_as_it_is() -> None:
    model = language_model()
    loss, wanted = gradients(model, batch())
    made = planner.fit(model, "1GB", inputs=batch(), optimizer=None, loss_chunks=1)
    found, others = gradients(made.apply(model), batch())
    assert made == planner.fit(model, "1GB", inputs=batch(), optimizer=None)
    assert torch.equal(found, loss)
    assert all(map(torch.equal, others, wanted))
    assert "loss_chunks=8, logits='when_read'" in str(made)
    assert "would lower what every schedule of this step holds" in " ".join(str(made).split())


def test_the_plan_chooses() -> None:
    model = language_model()
    whole = planner.fit(model, "1GB", loss_chunks="auto", **SAID)
    assert whole.rewrite == "as_captured"
    with pytest.raises(planner.InfeasibleBudget, match="loss_chunks=8") as error:
        planner.fit(model, whole.plain_peak_bytes // 2, inputs=batch(), optimizer=None)
    hurried = planner.Limits(seconds=0.05)  # less than it takes to capture the step once more
    with pytest.raises(planner.InfeasibleBudget, match=r"\(loss_chunks=\) was not tried"):
        planner.fit(model, "1MB", inputs=batch(), optimizer=None, limits=hurried)
    tight = planner.fit(model, error.value.least_bytes - 1, loss_chunks="auto", **SAID)
    assert tight.fits
    assert tight.rewrite.startswith("loss_chunks ")
    assert distance(gradients(tight.apply(model), batch())[1], gradients(model, batch())[1]) < 1e-5


def test_a_curve() -> None:
    """Its points are plans in chunks, the least of them below what the step needs as it is."""
    whole = planner.pareto(language_model(), inputs=batch(), optimizer=None, points=2)
    curve = planner.pareto(language_model(), points=3, loss_chunks=8, **SAID)
    assert curve.least_bytes < 0.5 * whole.least_bytes
    assert "of which form" in str(curve)
    assert "chunks" not in str(whole)
    assert curve.to_json()["rewrite"].startswith("loss_chunks 8 ")
    made = curve.plan(curve.points[0].budget_bytes)
    assert made.peak_bytes == curve.points[0].peak_bytes
    loss, found = gradients(made.apply(language_model()), batch())
    wanted, expected = gradients(language_model(), batch())
    assert torch.allclose(loss, wanted, rtol=1e-6)
    assert distance(found, expected) < 1e-5


def test_a_curve_chooses_at_each_budget() -> None:
    """As the step is where that fits, in ever more chunks below."""
    curve = planner.pareto(
        language_model(), points=4, loss_chunks="auto", limits=planner.Limits(9.0), **SAID
    )
    first, *_, last = curve.points
    assert len(curve.points) == len(curve.rewrites) <= 4
    assert curve.rewrites[-1] == "as_captured"
    assert last.overhead == 0.0
    assert curve.rewrites[0].startswith("loss_chunks ")
    assert first.budget_bytes < 0.4 * last.budget_bytes
    assert [p["rewrite"] for p in curve.to_json()["points"]] == list(curve.rewrites)
    assert "whole" in str(curve)
    assert all(p.bound_overhead <= p.overhead for p in curve.points)
    for point, rewrite in zip(curve.points, curve.rewrites, strict=True):
        made = curve.plan(point.budget_bytes)
        assert (made.rewrite, made.peak_bytes) == (rewrite, point.peak_bytes)
        assert made.seconds == pytest.approx((1 + point.overhead) * curve.graph.seconds)
    tight = curve.plan(first.budget_bytes).apply(language_model())
    wanted = gradients(language_model(), batch())[1]
    assert distance(gradients(tight, batch())[1], wanted) < 1e-5


def test_the_largest_batch() -> None:
    said = {name: value for name, value in SAID.items() if name != "inputs"}
    found = planner.max_batch(
        language_model(), "2MB", inputs=batch, loss_chunks=8, limits=planner.Limits(5.0), **said
    )
    assert found.plan.rewrite.startswith("loss_chunks 8 ")
    assert found.batch > 1
    assert "8 chunks of the tokens" in " ".join(str(found).split())
    assert found.to_json()["rewrite"] == found.plan.rewrite
    inputs = batch(found.batch)
    with pytest.raises(planner.InfeasibleBudget):  # as it is
        planner.fit(language_model(), "2MB", inputs=inputs, optimizer=None)
    planned = found.plan.apply(model := language_model())
    assert distance(gradients(planned, inputs)[1], gradients(model, inputs)[1]) < 1e-5


@pytest.mark.slow
def test_the_largest_batch_with_chunks_of_its_own() -> None:
    said = {name: value for name, value in SAID.items() if name != "inputs"}
    said |= {"limits": planner.Limits(8.0), "inputs": batch}
    found = planner.max_batch(language_model(), "2MB", loss_chunks="auto", **said)
    assert found.plan.rewrite.startswith("loss_chunks ")
    assert found.plan.fits
    assert found.plan.overhead <= found.max_overhead
    whole = planner.max_batch(language_model(), "2MB", inputs=batch, optimizer=None)
    assert found.plain_batch == whole.plain_batch  # without a plan, and without chunks
    assert found.batch > whole.batch


def test_a_comparison(plan: planner.Plan) -> None:
    methods = ["plain", "chen_sqrt", "checkpoint"]
    whole = planner.compare(
        language_model(), "2MB", inputs=batch(), optimizer=None, methods=["plain"]
    )
    found = planner.compare(language_model(), "2MB", methods=methods, loss_chunks=8, **SAID)
    assert found.rewrite == plan.rewrite
    assert found.plain_peak_bytes < 0.5 * whole.plain_peak_bytes
    assert found.eager_peak_bytes == whole.eager_peak_bytes
    assert "8 chunks of the tokens" in str(found)
    assert "chunks" not in str(whole)
    assert plan.compare(["plain"]).rewrite == plan.rewrite == found.to_json()["rewrite"]
    with pytest.raises(planner.BadRequest, match="not for engine='inductor'"):
        planner.compare(language_model(), "2MB", engines=["inductor"], loss_chunks=8, **SAID)


def test_a_file(plan: planner.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    again = planner.load(tmp_path / "plan.json")
    assert again == plan
    assert isinstance(again, planner.Plan)
    assert "computed in 8 chunks of the tokens" in " ".join(str(again).split())
    model = language_model()
    found = gradients(again.apply(model), batch())[1]
    assert distance(found, gradients(model, batch())[1]) < 1e-5


def test_logits_when_they_are_read(plan: planner.Plan) -> None:
    model = language_model()
    wanted, planned = model(**batch()).logits, plan.apply(model)
    logits = planned(**batch()).logits
    assert isinstance(logits, LateTensor)
    assert (logits.shape, logits.dtype, logits.requires_grad) == (wanted.shape, wanted.dtype, True)
    wide = logits.float().detach()  # as wrappers do to every output
    assert not logits.is_computed
    assert not wide.requires_grad
    assert torch.equal(logits, wanted)
    assert logits.is_computed
    assert logits.tolist() == wide.tolist() == wanted.tolist()
    with pytest.raises(planner.PlanMismatch, match="'logits'"):
        logits.square().sum().backward()
    late = planned(**batch()).logits
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # type: ignore[union-attr, operator]
    with pytest.raises(planner.PlanMismatch, match="after the weights"):
        late.sum()


def test_accumulated_gradients() -> None:
    """With gradients of an earlier micro-batch there."""
    model = language_model()
    twice = [2 * g for g in gradients(model, batch())[1]]
    made = planner.fit(model, "1GB", loss_chunks=4, accumulate=True, **SAID)
    planned = made.apply(model)
    gradients(planned, batch())
    planned(**batch()).loss.backward()
    assert distance([p.grad for p in model.parameters() if p.grad is not None], twice) < 1e-5


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"loss_chunks": 0}, "a number from 1 on"),
        ({"loss_chunks": "many"}, "a number from 1 on"),
        ({"loss_chunks": True}, "a number from 1 on"),
        ({"loss_chunks": 4}, "returns 'logits' beside the loss"),
        ({"loss_chunks": 4, "logits": "never"}, "expected one of 'keep', 'when_read'"),
        ({"logits": "when_read"}, "of no use without"),
        ({"loss_chunks": 4, "rewrites": ["loss_chunks 4 A"]}, "leave rewrites= out"),
        ({"loss_chunks": 4, "logits": "when_read", "engine": "inductor"}, "not for engine="),
    ],
)
def test_refused(said: dict[str, Any], reason: str) -> None:
    with pytest.raises((planner.BadRequest, planner.BadCluster), match=reason):
        planner.fit(language_model(), "1GB", inputs=batch(), optimizer=None, **said)


@pytest.mark.parametrize(
    "name",
    ["loss_chunks", "loss_chunks 0 A", "loss_chunks 4 C", "loss_chunks 4 A x", "as_captured 1"],
)
def test_words_that_a_rewrite_does_not_take(name: str) -> None:
    with pytest.raises(planner.CaptureError, match="is no rewrite: expected"):
        planner.fit(nn.Linear(4, 4), "1GB", inputs=torch.zeros(2, 4), rewrites=[name])


def test_a_model_without_such_a_loss() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    said: dict[str, Any] = {"inputs": torch.zeros(16, 8), "loss": torch.mean}
    with pytest.raises(planner.BadRequest, match="no softmax"):
        planner.fit(net, "1GB", loss_chunks=4, **said)
    assert planner.fit(net, "1GB", loss_chunks="auto", **said).rewrite == "as_captured"


def test_the_command(tmp_path: Path) -> None:
    made = tmp_path / "plan.json"
    source = f"{Path(__file__)}:example"
    options = ["--optimizer", "none", "--loss-chunks", "4", "--logits", "when_read"]
    done = CliRunner().invoke(
        cli, ["fit", source, "--budget", "1GB", *options, "--export", str(made)]
    )
    assert done.exit_code == 0, done.output
    assert "4 chunks of the tokens" in " ".join(done.output.split())
    assert isinstance(loaded := planner.load(made), planner.Plan)
    assert loaded.rewrite.startswith("loss_chunks 4 ")
    told = ["--budget", "2MB", "--method", "plain", "--json", *options]
    done = CliRunner().invoke(cli, ["compare", source, *told])
    assert json.loads(done.stdout)["rewrite"].startswith("loss_chunks 4 ")


def example() -> tuple[nn.Module, dict[str, Tensor]]:
    """What the command line is told to plan."""
    return language_model(), batch()


def test_the_limit_in_seconds_is_for_all_variants_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = [0.0], list[float]()

    def spent(graph: Graph, budget_bytes: int, request: Request) -> Solution:
        given.append(request.limits.seconds)
        clock[0] += request.limits.seconds
        return Solution(Status.UNKNOWN, None, 0.0, STOPPED)

    monkeypatch.setattr(planning, "solve_within", spent)
    for module in (planning, allocator_budget):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    limits = planner.Limits(seconds=8.0)
    with pytest.raises(planner.InfeasibleBudget, match="stopped by the limit in seconds"):
        planner.fit(language_model(), "1.4MB", loss_chunks="auto", limits=limits, **SAID)
    assert len(given) > 1
    assert sum(given) <= 8.0
