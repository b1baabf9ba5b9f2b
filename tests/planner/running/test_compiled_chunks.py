"""A loss in chunks in the compiled engine: what it holds, with kernels that are stubs, and says.

Where gradients are compared, kernels are real and come of the C++ compiler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import planner
from tests.compiled import QUICK, gradients, measured_bytes
from tests.speaker import Returning, Speaker, batch, distance, usual

WORDS, WIDTH, ROWS, LENGTH = 4001, 16, 4, 64
INPUTS = batch(WORDS, ROWS, LENGTH)
SAID: dict[str, Any] = {"inputs": INPUTS, "engine": "inductor", **QUICK}
WHOLE = ROWS * LENGTH * WORDS * 4


def speaker(**said: Any) -> Speaker:
    return Speaker(usual, WORDS, WIDTH, **said)


@pytest.fixture(scope="module")
def tied() -> planner.Plan:
    """A plan within less than the logits take."""
    rewrites = ["loss_chunks 8 B"]
    return planner.fit(speaker(tied=True), int(0.9 * WHOLE), rewrites=rewrites, **SAID)


def check_measured(plan: planner.Plan, model: nn.Module, *inputs: Tensor) -> None:
    measured = measured_bytes(plan.apply(model), *inputs)
    assert 0.95 * plan.peak_bytes < measured <= plan.peak_bytes <= plan.budget_bytes


@pytest.mark.usefixtures("stubbed")
def test_the_measured_peak_is_as_predicted(tied: planner.Plan) -> None:
    assert tied.rewrite == "loss_chunks 8 B"
    assert not tied.recomputed
    assert tied.peak_bytes < 0.6 * WHOLE
    check_measured(tied, speaker(tied=True), *INPUTS)


def test_a_sum_that_is_added_to_is_not_made_again(tied: planner.Plan) -> None:
    graph = tied.graph
    added = [op for op in graph.ops if op.target == "aten.addmm_.default"]
    assert len(added) == 7
    assert all(op.seconds > 0 and op.flops > 0 for op in added)
    read = set.intersection(*(set(op.inputs) for op in added))
    (total,) = (v for v in read if graph.values[v].size_bytes == WORDS * WIDTH * 4)
    (maker,) = [op for op in graph.ops if total in op.outputs]
    assert maker.target == "aten.mm.default"
    assert not maker.recomputable


def tightest(rewrite: str, **said: Any) -> planner.Plan:
    """Plan within the least budget that is known to work, where kernels run again."""
    asked = {"rewrites": [rewrite], **SAID}
    with pytest.raises(planner.InfeasibleBudget) as error:
        planner.fit(speaker(**said), WHOLE // 8, **asked)
    return planner.fit(speaker(**said), error.value.least_bytes, **asked)


@pytest.mark.slow
@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("A", {"bias": True}),
        ("A", {"tied": True}),
        ("A", {"drop": 0.2}),
        ("B", {"tied": True}),
        ("B", {"drop": 0.2}),
    ],
)
def test_budgets_are_kept_in_both_forms(form: str, said: dict[str, Any]) -> None:
    rewrite = f"loss_chunks 4 {form}"
    large = planner.fit(speaker(**said), "1GB", rewrites=[rewrite], **SAID)
    check_measured(large, speaker(**said), *INPUTS)
    least = tightest(rewrite, **said)
    assert least.recomputed
    assert least.peak_bytes < (0.75 if form == "A" else 1) * large.peak_bytes
    check_measured(least, speaker(**said), *INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("said", [{}, {"tied": True}])
@pytest.mark.parametrize(("form", "bound"), [("A", 1e-6), ("B", 1e-5)])
def test_gradients_are_those_of_the_whole(form: str, bound: float, said: dict[str, Any]) -> None:
    wanted = gradients(speaker(**said), *INPUTS)
    plain = planner.fit(speaker(**said), "1GB", rewrites=[f"loss_chunks 4 {form}"], **SAID)
    for plan in (plain, tightest(plain.rewrite, **said)):
        assert distance(gradients(plan.apply(speaker(**said)), *INPUTS), wanted) < bound


@pytest.mark.slow
def test_dropout_draws_what_the_compiler_draws() -> None:
    from planner.running.compiled_model import without_plan

    model = speaker(drop=0.3, tied=True)
    plan = planner.fit(model, "1GB", loss_chunks=4, **SAID)
    wanted = gradients(without_plan(speaker(drop=0.3, tied=True), None), *INPUTS)
    assert distance(gradients(plan.apply(model), *INPUTS), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("stubbed")
def test_a_file_and_other_sizes(tied: planner.Plan, tmp_path: Path) -> None:
    tied.save(tmp_path / "plan.json")
    known = planner.load(tmp_path / "plan.json")
    assert known.rewrite == tied.rewrite
    model = known.apply(speaker(tied=True))
    assert measured_bytes(model, *INPUTS) <= tied.peak_bytes
    less = batch(WORDS, ROWS, LENGTH // 2)
    assert measured_bytes(model, *less) < 0.8 * tied.peak_bytes
    with pytest.raises(planner.CaptureError, match="largest product, is of one token"):
        model(*(t[:1, :1] for t in INPUTS))
    other = known.apply(Speaker(lambda x, y: usual(2 * x, y), WORDS, WIDTH, tied=True))
    with pytest.raises(planner.PlanMismatch, match="another step than the planned one"):
        other(*INPUTS)
    unlike = known.apply(Speaker(lambda x, _: x.square().mean(), WORDS, WIDTH, tied=True))
    with pytest.raises(planner.PlanMismatch, match="no loss any more that can be computed"):
        unlike(*INPUTS)


@pytest.mark.slow
def test_a_plan_chooses_and_the_error_says_what_chunks_would_save() -> None:
    whole = planner.fit(speaker(), "1GB", loss_chunks="auto", **SAID)
    assert whole.rewrite == "as_captured"
    with pytest.raises(planner.InfeasibleBudget, match=r"loss_chunks=8 the least") as error:
        planner.fit(speaker(), WHOLE // 2, **SAID)
    budget = int(0.7 * error.value.least_bytes)
    tight = planner.fit(speaker(), budget, loss_chunks="auto", **SAID)
    assert tight.rewrite.startswith("loss_chunks ")
    assert any("without chunks the compiler holds" in text for text in tight.remarks)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(planner.BadRequest, match=r"let it return that alone, .*output\.loss"):
        planner.fit(Returning(usual), "1GB", loss_chunks=2, **{**SAID, "inputs": batch()})
    with pytest.raises(planner.BadRequest, match="'when_read' is not for engine='inductor'"):
        planner.fit(speaker(), "1GB", loss_chunks=2, logits="when_read", **SAID)
