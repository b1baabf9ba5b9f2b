"""Which variant of a sharded step is planned, and what is looked at for that."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import planner
from planner.errors import InfeasibleBudget
from planner.graphs.capture.rewrites import Declined
from planner.request import Request
from planner.sharding.loss_variants import best_variant
from planner.sharding.wrapped import unit_captures
from tests.asked import request
from tests.planner.sharding.chunked_ranks import batch, gpt

AUTO: dict[str, Any] = {"loss_chunks": "auto", "logits": "when_read"}


def found(seconds: float) -> Any:
    return SimpleNamespace(seconds=seconds, plain_seconds=0.0)


def asked() -> Request:
    return request(torch.nn.Linear(2, 2), inputs=torch.zeros(2, 2), **AUTO)


def test_a_variant_is_looked_at_only_as_far_as_it_may_be_quicker() -> None:
    told = list[float]()

    def plan(part: Request, name: str, below_seconds: float) -> Any:
        told.append(below_seconds)
        if name == "as_captured":
            raise InfeasibleBudget(1, 2, None, "too much")  # type: ignore[arg-type]
        if " A" in name:
            raise Declined("no")
        seconds = {"2": 5.0, "4": 3.0, "8": 4.0, "16": 2.0}[name.split()[1]]
        return found(seconds) if seconds < below_seconds else None

    assert best_variant(asked(), plan).seconds == 2.0
    assert told == [math.inf] * 3 + [5.0] * 2 + [3.0] * 4


def test_units_are_captured_once_for_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the root twice: as it is, and to be rewritten, with its head; whatever its chunks."""
    seen = list[bool]()
    taken_apart = unit_captures._taken_apart

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(options["planned"])
        return taken_apart(*args, **options)

    monkeypatch.setattr(unit_captures, "_taken_apart", counted)
    said = {"world_size": 2, "device": "cpu", "offload": False, "global_batch": 2}
    limits = planner.Limits(seconds=3.0)
    plan = planner.fit(gpt(), "3MB", inputs=batch(1), limits=limits, **said, **AUTO)
    assert isinstance(plan, planner.ShardedPlan)
    assert plan.step.rewrite.startswith("loss_chunks")
    assert seen == [False, True]


def test_what_fits_nowhere_says_what_the_loss_in_chunks_would_hold() -> None:
    said = {"world_size": 2, "device": "cpu", "offload": False, "global_batch": 2}
    limits = planner.Limits(seconds=3.0)
    with pytest.raises(InfeasibleBudget) as caught:
        planner.fit(gpt(), "1.6MB", inputs=batch(1), limits=limits, **said)
    text = str(caught.value)
    assert "Or compute the loss in chunks: with loss_chunks=8, logits='when_read' the same" in text
    held = float(text.rpartition("the same configuration holds ")[2].split()[0])
    assert held * 1e6 < caught.value.least_bytes * 0.7
