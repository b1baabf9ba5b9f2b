"""Plan files of version 0.1.0 load, say what they said then, and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import planner
from planner.output.plan_text import summary
from planner.output.sharded_plan_text import sharded_summary
from tests.saved_models import pictures, words

SAVED = Path(__file__).parents[2] / "fixtures" / "plans"
NAMES = sorted(p.name.removesuffix(".txt") for p in SAVED.glob("*[!n].txt"))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_said(name: str) -> None:
    plan = planner.load(SAVED / f"{name}.json")
    assert str(plan) + "\n" == (SAVED / f"{name}.txt").read_text()
    told = json.loads((SAVED / f"{name}.summary.json").read_text())
    found = summary(plan) if isinstance(plan, planner.Plan) else sharded_summary(plan)
    assert {key: found[key] for key in told} == told
    if isinstance(plan, planner.ShardedPlan):
        assert plan.explain() + "\n" == (SAVED / f"{name}.explain.txt").read_text()


def test_draws_what_it_drew(tmp_path: Path) -> None:
    planner.load(SAVED / "words.json").report(tmp_path / "words.html")
    assert (tmp_path / "words.html").read_text() == (SAVED / "words.html").read_text()


@pytest.mark.parametrize("name", ["words", "words_least", "pictures"])
def test_runs(name: str) -> None:
    plan = planner.load(SAVED / f"{name}.json")
    assert isinstance(plan, planner.Plan)
    loss = nn.functional.cross_entropy if name == "pictures" else None
    plain, *inputs = pictures() if loss else words()
    planned = plan.apply(pictures()[0] if loss else words()[0], loss=loss)
    gradients = []
    for model in (plain, planned):
        torch.manual_seed(1)
        if loss is None:
            model(inputs[0]).backward()
        elif model is planned:
            model(inputs[0], targets=inputs[1]).backward()
        else:
            loss(model(inputs[0]), inputs[1]).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
