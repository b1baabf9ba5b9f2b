"""Plans made for a card, on a machine without it: what they say, and what happens elsewhere."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import InfeasibleBudget, PlanMismatch, PlannerWarning
from planner.errors import OtherKernels
from planner.graphs.capture.guards.call import differences
from planner.plan.step_plan import StepPlan
from planner.running.apply import apply
from tests.by_default import slow_but
from tests.scenes import Apply
from tests.training import Scene, assert_same, train

CARD = "A100-40GB"


def attending() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (f(m.norm(x)).view(4, 16, 2, 16).transpose(1, 2) for f in (m.q, m.k, m.v))
        made = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        return m.drop(made).square().mean()

    parts = {name: nn.Linear(32, 32) for name in "qkv"}
    return Apply(run, norm=nn.RMSNorm(32), drop=nn.Dropout(0.1), **parts)


SCENE = Scene(attending, lambda: torch.randn(64, 32))


def plan(budget: str = "2GB", **said: Any) -> planner.Plan:
    return planner.fit(SCENE.model(), budget, inputs=SCENE.call(), device=CARD, **said)


def test_a_plan_for_a_card_is_of_its_kernels() -> None:
    targets = {op.target for op in plan().graph.ops}
    assert "aten._scaled_dot_product_efficient_attention.default" in targets
    assert "aten._fused_rms_norm.default" in targets
    assert "aten.native_dropout.default" in targets


def test_on_meta_and_on_a_cpu_it_is_the_same_plan() -> None:
    with torch.device("meta"):
        model, x = attending(), torch.empty(64, 32)
    assert planner.fit(model, "2GB", inputs=x, device=CARD).graph == plan().graph


@pytest.mark.parametrize("saved", [False, True])
def test_where_other_kernels_run_it_is_planned_anew(tmp_path: Path, *, saved: bool) -> None:
    made = plan()
    if saved:
        made.save(tmp_path / "plan.json")
        loaded = planner.load(tmp_path / "plan.json")
        assert isinstance(loaded, planner.Plan)
        made = loaded
    model = SCENE.model()
    with pytest.warns(PlannerWarning, match=f"for {CARD} is made anew for cpu.*kernels of cuda"):
        planned = made.apply(model)
    assert_same(train(SCENE, SCENE.model()), train(SCENE, planned))


def test_only_where_nothing_fits_is_it_refused() -> None:
    made = plan()

    def replan(*args: Any) -> StepPlan:
        raise InfeasibleBudget(1, 2, made.binding, "nothing fits")

    with pytest.raises(InfeasibleBudget):
        apply(made, SCENE.model(), replan=replan)
    with pytest.raises(OtherKernels, match="kernels of cuda"):
        apply(made, SCENE.model())


def test_another_model_is_still_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PlanMismatch, match="not for this model"):
            plan().apply(nn.Linear(2, 2))


def test_optimizers_take_all_parameters_at_once_on_a_card() -> None:
    found = {name: plan(optimizer=name) for name in ("adamw", "adamw_foreach", "adamw_loop")}
    workspace = {name: made.graph.ops[-1].workspace_bytes for name, made in found.items()}
    assert workspace["adamw"] == workspace["adamw_foreach"] > workspace["adamw_loop"]


def test_autocast_of_either_name_is_planned_by_the_rules_of_cuda() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        made = plan()
    assert made.signature["autocast"] == ["cpu", "bfloat16"]
    assert "aten._scaled_dot_product_flash_attention.default" in {
        op.target for op in made.graph.ops
    }


def test_where_the_model_was_while_it_was_planned_does_not_count() -> None:
    there = dict(plan().signature)
    there["autocast"] = ["cuda"]
    leaves = [[*leaf[:3], "cuda", *leaf[4:]] for leaf in there["leaves"]]
    assert not list(differences(plan().signature, there | {"leaves": leaves}))
    stayed = list(differences(plan().signature, there))
    assert "device cpu instead of cuda" in stayed[0]


def test_planned_anew_it_is_in_the_autocast_that_it_was_planned_in() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        made = plan()
    planned = made.apply(SCENE.model())
    with torch.autocast("cpu", torch.bfloat16):
        loss = planned(SCENE.call())
    loss.backward()


@pytest.mark.parametrize(
    ("dtype", "card"),
    slow_but(
        {
            (torch.float32, CARD),
            (torch.float16, "V100-16GB"),
            (torch.bfloat16, "H100-SXM"),
            (torch.float16, "MI300X"),
        },
        itertools.product(
            (torch.float32, torch.float16, torch.bfloat16),
            ("V100-16GB", CARD, "H100-SXM", "MI300X"),
        ),
    ),
)
def test_grouped_heads_are_planned_in_any_precision(dtype: torch.dtype, card: str) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, use_cache=False,
    )  # fmt: skip
    ids = torch.empty(4, 64, dtype=torch.long, device="meta")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype).train()
    inputs = {"input_ids": ids, "labels": ids}
    assert planner.fit(model, "8GB", inputs=inputs, device=card).fits
