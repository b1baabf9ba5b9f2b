"""``mlp_chunks=``: what a plan says, holds and computes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import planner
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.plan.chunk_notes import described
from planner.request import request_of
from planner.solvers.minimum_budget import proven_floor
from planner.step_variants import captured_step
from tests.speaker import distance, gradients

WORDS, ROWS, LENGTH = 61, 2, 256


def language_model(**options: Any) -> nn.Module:
    """GPT-2 with wide MLPs, and dropout behind them."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_inner=1024, n_head=2, vocab_size=WORDS, n_positions=LENGTH,
        use_cache=False, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLMLoss",
        embd_pdrop=0.0, attn_pdrop=0.0, **options,
    )  # fmt: skip
    made: nn.Module = transformers.GPT2LMHeadModel(config).train()
    return made


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


SAID: dict[str, Any] = {"inputs": batch(), "optimizer": None}


@pytest.fixture(scope="module")
def plan() -> planner.Plan:
    """Within what suffices in chunks, and does not without."""
    found = planner.fit(language_model(), "5MB", mlp_chunks=8, **SAID)
    assert isinstance(found, planner.Plan)
    return found


def test_the_measured_peak_is_within_the_budget_and_as_predicted(plan: planner.Plan) -> None:
    model = language_model()
    planned = plan.apply(model)
    gradients(planned, batch())
    model.zero_grad(set_to_none=True)
    held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)

    def step() -> None:
        output = planned(**batch())
        output.loss.backward()

    peak = measure_peak(step).peak_bytes
    assert abs(peak / (plan.peak_bytes - held) - 1) < 0.01
    assert held + peak <= plan.budget_bytes
    whole = captured_step(request_of(model, SAID))
    assert proven_floor(whole.graph) > plan.budget_bytes, "no schedule is known to fit otherwise"


@pytest.mark.parametrize("rows", [ROWS, 1])
def test_it_computes_what_the_model_does_at_every_size(plan: planner.Plan, rows: int) -> None:
    """Dropout behind the MLPs draws as ever; what sums are rounded to differs in the last bits."""
    loss, wanted = gradients(language_model(), batch(rows))
    found, others = gradients(plan.apply(language_model()), batch(rows))
    assert torch.equal(found, loss) or abs(found / loss - 1) < 1e-6
    assert distance(others, wanted) < 1e-5


def test_with_the_loss_in_chunks_too() -> None:
    plan = planner.fit(
        language_model(), "1GB", mlp_chunks=4, loss_chunks=2, logits="when_read", **SAID
    )
    assert plan.rewrite.startswith("mlp_chunks 4 loss_chunks 2 ")
    assert [note.partition(" ")[0] for note in described(plan.rewrite)] == [
        "MLPs,",
        "head",
        "logits",
    ]
    _, wanted = gradients(language_model(), batch())
    _, found = gradients(plan.apply(language_model()), batch())
    assert distance(found, wanted) < 1e-5


@pytest.mark.parametrize("budget", ["1GB", pytest.param("5MB", marks=pytest.mark.slow)])
def test_the_number_is_kept_where_a_plan_chooses_that_of_the_loss(budget: str) -> None:
    found = planner.fit(
        language_model(), budget, mlp_chunks=8, loss_chunks="auto", logits="when_read", **SAID
    )
    assert isinstance(found, planner.Plan)
    assert found.rewrite.startswith("mlp_chunks 8")


def test_a_plan_says_what_chunks_save_and_is_saved(plan: planner.Plan, tmp_path: Path) -> None:
    assert "MLPs, and what else widens tokens and narrows them, are computed in 8 chunks" in str(
        plan
    )
    assert "every schedule holds at least" in str(plan)
    plan.save(tmp_path / "plan.json")
    loaded = planner.load(tmp_path / "plan.json")
    assert isinstance(loaded, planner.Plan)
    assert loaded.rewrite == "mlp_chunks 8"
    _, wanted = gradients(plan.apply(language_model()), batch())
    _, found = gradients(loaded.apply(language_model()), batch())
    assert all(map(torch.equal, found, wanted))


def test_by_default_nothing_changes() -> None:
    whole = planner.fit(language_model(), "1GB", **SAID)
    assert whole.rewrite == "as_captured"
    assert planner.fit(language_model(), "1GB", mlp_chunks=1, **SAID).schedule == whole.schedule


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mlp_chunks": 0}, "mlp_chunks is 0; expected a number from 1 on"),
        ({"mlp_chunks": "auto"}, "mlp_chunks is 'auto'; expected a number"),
        ({"mlp_chunks": 4, "world_size": 2}, "mlp_chunks= is for one device so far"),
        ({"mlp_chunks": 4, "engine": "inductor"}, "mlp_chunks= is not for engine='inductor'"),
        ({"mlp_chunks": 4, "rewrites": ("as_captured", "x")}, "choose the rewrites themselves"),
    ],
)
def test_what_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(planner.PlannerError, match=reason):
        planner.fit(language_model(), "1GB", **SAID, **options)


def test_a_model_without_such_a_chain_is_told_so() -> None:
    model, x = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.1), nn.Linear(32, 1)), torch.ones(4, 8)
    with pytest.raises(
        planner.PlannerError, match=r"mlp_chunks=4: this step cannot .* draws random"
    ):
        planner.fit(model, "1GB", inputs=x, loss=lambda y: y.sum(), mlp_chunks=4)
