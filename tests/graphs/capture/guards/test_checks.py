"""Checks in a model's code: passed while it is traced, carried out at every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import planner
from planner import CaptureError, CheckFailed
from planner.errors import BadRequest


class Checking(nn.Module):
    def __init__(self, check: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.check = nn.Linear(4, 4), check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.layer(x).square().mean()


def in_one_line(plan: planner.Plan) -> str:
    """Where a note breaks depends on the length of the paths in it."""
    return " ".join(str(plan).split())


def planned(check: Callable[[Tensor], object]) -> nn.Module:
    model = Checking(check)
    return planner.fit(model, "1MB", inputs=torch.ones(2, 4)).apply(model)


def raising(x: Tensor) -> None:
    if torch.isnan(x).any():
        raise ValueError("not a number")


def asserting(x: Tensor) -> None:
    assert not x.isnan().any(), "not a number"


def raising_otherwise(x: Tensor) -> None:
    if x.isfinite().all():
        pass
    else:
        raise ValueError


def of_two(x: Tensor) -> None:
    if x.isnan().any() or not (x > -9).all():
        raise ValueError


def logging(x: Tensor) -> None:
    if x.isnan().any():
        print("not a number")


@pytest.mark.parametrize("check", [raising, asserting, raising_otherwise])
def test_a_check_that_fails_raises(check: Callable[[Tensor], object]) -> None:
    model = planned(check)
    model(torch.ones(2, 4)).backward()
    with pytest.raises(CheckFailed, match=r"test_checks\.py:\d+ fails"):
        model(torch.full((2, 4), torch.nan))


def test_a_check_that_would_log_warns() -> None:
    model = planned(logging)
    with pytest.warns(UserWarning, match="is not logged"):
        model(torch.full((2, 4), torch.nan))


def branching(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def computing(x: Tensor) -> Tensor:
    if x.isnan().any():
        x = x.nan_to_num()
    return x


@pytest.mark.parametrize("check", [branching, computing, of_two])
def test_what_does_more_than_check_is_refused(check: Callable[[Tensor], object]) -> None:
    with pytest.raises(CaptureError, match=r"test_checks\.py:\d+ needs the value"):
        planned(check)


def test_checks_may_be_dropped() -> None:
    model, x = Checking(raising), torch.ones(2, 4)
    kept = planner.fit(model, "1MB", inputs=x)
    dropped = planner.fit(model, "1MB", inputs=x, checks="drop")
    assert len(dropped.graph.ops) < len(kept.graph.ops)
    dropped.apply(model)(torch.full((2, 4), torch.nan)).backward()
    line = raising.__code__.co_firstlineno + 1
    assert f"test_checks.py:{line} are made after each call" in in_one_line(kept)
    assert "are left out" in in_one_line(dropped)
    with pytest.raises(BadRequest, match=r"checks is 'some'; expected"):
        planner.fit(model, "1MB", inputs=x, checks="some")


def test_a_check_of_integers_that_fails_raises() -> None:
    class Words(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            if (ids < 0).any():
                raise ValueError("negative")
            return super().forward(ids).square().mean()

    model = Words(5, 4)
    for on_mismatch in ("error", "replan", "plain"):
        plan = planner.fit(model, "1MB", inputs=torch.ones(3, dtype=torch.long))
        called = plan.apply(model, on_mismatch=on_mismatch)
        called(torch.tensor([1, 4, 2])).backward()
        with pytest.raises(CheckFailed, match=r"test_checks\.py:\d+ fails"):
            called(torch.tensor([1, -1, 2]))
