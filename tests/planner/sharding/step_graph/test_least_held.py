"""What every schedule holds, told from a step without solving it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.graphs import Kind
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.request import request_of
from planner.sharding.captures import Captures
from planner.sharding.least_states import states_of
from planner.sharding.parted.ways import ways_of
from planner.sharding.pricing import plan_step, price_recipes
from planner.sharding.too_full import full
from planner.solvers import Limits
from planner.solvers.minimum_budget import proven_floor
from tests.planner.sharding.assembled import DDP, FSDP, ZERO1, step


@pytest.mark.parametrize("configuration", [DDP, ZERO1, FSDP], ids=str)
def test_no_plan_holds_less(configuration: Configuration) -> None:
    found = step(configuration)
    floor = found.floor_bytes()
    assert floor > found.graph.resident_bytes
    peaks = [planned.peak_bytes for planned in price_recipes(configuration, found)]
    assert floor <= min(peaks)
    for budget in (floor, (floor + min(peaks)) // 2, min(peaks)):
        planned = plan_step(configuration, found, budget, limits=Limits(seconds=2.0))
        assert planned is None or planned.peak_bytes >= floor
    assert plan_step(configuration, found, floor - 1, limits=Limits(seconds=2.0)) is None


def test_what_units_hand_on_is_made_once() -> None:
    """No unit is run again for another: what entered the units is kept."""
    found = step(FSDP)
    once = [op for op in found.graph.ops if op.module.startswith("h.") and not op.recomputable]
    made = {v for op in once for v in op.outputs}
    kinds = {found.graph.values[v].kind for v in made}
    assert Kind.ACTIVATION in kinds
    assert found.floor_bytes() >= proven_floor(found.graph)


class _Noise(nn.Module):
    """A layer that drops some of its weights: what it draws does not grow with the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        dropped = torch.dropout(self.w.weight, 0.2, True)
        made: Tensor = x + nn.functional.linear(x, dropped)
        return made


def _mean_square(out: Tensor) -> Tensor:
    return out.square().mean()


def test_what_is_ruled_out_with_more_samples_does_not_fit() -> None:
    """What is said of larger micro-batches, and of smaller groups of ranks, holds for them."""
    model = nn.Sequential(*(_Noise() for _ in range(3)))
    said = {"inputs": torch.zeros(1, 2, 48), "loss": _mean_square, "device": "cpu", "reserve": 0}
    request = request_of(model, {**said, "world_size": 2, "global_batch": 8})
    cluster = request.cluster(2)
    shop = Captures(request, ways_of(model, None, cluster))
    tried = [
        Configuration(strategy, 2, 1, samples, 4 // samples)
        for strategy in (Strategy.FSDP, Strategy.ZERO1)
        for samples in (1, 2, 4)
    ]
    least = {}
    for c in tried:
        planned = price_recipes(c, shop.step(c, cluster))
        least[c] = min(p.peak_bytes for p in planned)
        assert shop.step(c, cluster).floor_bytes() <= least[c]
    for c in tried:
        for room in sorted(set(least.values())):
            if (too_much := full(shop.step(c, cluster), c, room - 1)) is not None:
                ruled_out = [o for o in tried if too_much.rules_out(o)]
                assert c in ruled_out
                assert all(least[o] >= room for o in ruled_out)


class _Square(torch.optim.SGD):
    """Keeps a number for each pair of rows, as Shampoo does: shards of a weight have far fewer."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("square", torch.zeros(p.shape[0], p.shape[0]))


def test_states_of_optimizers_that_are_not_known_count_nothing() -> None:
    model = nn.Linear(16, 1024)
    known = states_of(model, torch.optim.SGD, accelerated=False)
    assert states_of(model, _Square, accelerated=False) == known
    assert states_of(model, torch.optim.AdamW, accelerated=False).optimizer > 0
