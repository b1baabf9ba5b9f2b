"""Which units have their states on the host: bounds and plans against every choice there is."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding import host_choice
from planner.sharding.host_choice import HostChoice
from planner.sharding.pricing import Planned, plan_step
from planner.sharding.search import explore
from planner.sharding.space import Space
from planner.sharding.step_graph.assembly import assemble, what_may_wait
from planner.sharding.step_graph.movable import MovableStates
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.solvers import Limits, lower_bound, minimum_budget

WIDTH = 1024
HERE = Configuration(Strategy.FSDP, 2)
THERE = replace(HERE, offload=True)
TWICE = replace(HERE, accumulation=2)
GAP = 0.02
LIMITS = Limits(gap=GAP)
ROUNDING = 1e-5  # what solvers take off what they prove


class Block(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, times * WIDTH), nn.Linear(times * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block(4), Block(4), Block(2)])
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = block(x)
        return self.head(x).square().mean()


@functools.cache
def captures() -> ModelCapture:
    with torch.device("meta"):
        return capture_units(Blocks(), torch.empty(2, 3072, WIDTH), device="RTX-4090")


@functools.cache
def step(c: Configuration) -> ShardedStep:
    return assemble(captures(), c, cluster("RTX-4090", 2))


@functools.cache
def states(c: Configuration = HERE) -> MovableStates:
    found = what_may_wait(captures(), c, cluster("RTX-4090", 2))
    assert found is not None
    return found


def every_choice(c: Configuration) -> Iterator[Configuration]:
    paths = ("h.0", "h.1", "h.2")
    for count in range(1, len(paths)):
        for some in combinations(paths, count):
            yield replace(c, offload=True, staying=("", *some))
    yield replace(c, offload=True, staying=("",))


def space(host_bytes: float = math.inf) -> Space:
    return Space(
        (HERE, THERE), lambda c: 0.0, step, host_bytes=host_bytes, movable=lambda c: states()
    )


def budgets(c: Configuration) -> list[int]:
    """From where all states have to leave to where none has."""
    most = minimum_budget(step(replace(c, offload=False)).graph).least_bytes
    least = minimum_budget(step(replace(c, offload=True)).graph).least_bytes
    return [least + (most - least) * i // 8 for i in (5, 7)]


@pytest.mark.parametrize(
    ("here", "most"), [(HERE, host_choice.MOST_CHOICES), (TWICE, 1000), (HERE, 6)]
)
def test_no_bound_is_above_that_of_the_step(
    here: Configuration, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every choice, whether each is looked at or some are taken together."""
    monkeypatch.setattr(host_choice, "MOST_CHOICES", most)
    budget, _ = budgets(here)
    choice = HostChoice(states(here), budget, math.inf)
    choice.deepen()
    least = min(lower_bound(step(c).graph, budget) for c in every_choice(here))
    assert choice.bound_seconds <= least * (1 + ROUNDING)
    seen = list[tuple[str, ...]]()
    while choice.bound_seconds < math.inf:
        if (room := choice.room_bytes) is not None:
            choice.learn(room, lower_bound(choice.states.step.graph, room))
            continue
        bound, staying = choice.bound_seconds, choice.take()
        c = replace(here, offload=True, staying=staying)
        assert bound <= lower_bound(step(c).graph, budget) * (1 + ROUNDING)
        seen.append(staying)
    assert len(seen) == len(set(seen))


def plan(c: Configuration, budget: int) -> Planned | None:
    return plan_step(c, step(c), budget, limits=LIMITS)


def test_the_search_finds_what_trying_every_choice_finds() -> None:
    chosen = set[int]()
    for budget in budgets(HERE):
        found = explore(space(), budget, limits=LIMITS)
        tried = [plan(c, budget) for c in (HERE, THERE, *every_choice(HERE))]
        known = [planned.seconds for planned in tried if planned is not None]
        assert found.best is not None
        assert found.best.seconds <= min(known) * (1 + GAP)
        assert found.best.peak_bytes <= budget
        assert found.bound_seconds <= found.best.seconds * (1 + 1e-9)
        c = found.best.configuration
        chosen.add(sum(c.on_host(path) for path in ("h.0", "h.1", "h.2")))
    assert {1, 2} & chosen


def test_the_host_is_given_what_it_has_room_for() -> None:
    """Where neither all states nor none can be there, some are; a byte less of it is too few."""
    budget, _ = budgets(HERE)
    room = max(step(c).host_bytes for c in every_choice(HERE))
    within = budget + step(THERE).host_bytes - room
    found = explore(space(room), within, limits=LIMITS)
    assert found.best is not None
    assert 0 < step(found.best.configuration).host_bytes <= room
    tried = (plan(c, within) for c in every_choice(HERE) if step(c).host_bytes <= room)
    assert found.best.seconds <= min(p.seconds for p in tried if p is not None) * (1 + GAP)
    none = explore(space(0), within, limits=LIMITS)
    assert none.best is None
    assert none.bound_seconds == math.inf


def test_nothing_may_wait_one_by_one_where_it_is_not_known_what_that_takes() -> None:
    on_cpu = what_may_wait(captures(), HERE, cluster("cpu", 2))
    ddp = what_may_wait(captures(), Configuration(Strategy.DDP, 1, 2), cluster("RTX-4090", 2))
    assert on_cpu is None
    assert ddp is None


class Alike(Blocks):
    """Two of its four blocks are alike, and its tables are looked up by their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block(4) for _ in range(4)])
        self.tables = nn.ModuleList([nn.Embedding(400_000, WIDTH) for _ in "ab"])

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(self.tables[0](ids) + self.tables[1](ids))


@functools.cache
def alike() -> ModelCapture:
    with torch.device("meta"):
        ids = torch.empty(2, 3072, dtype=torch.long)
        return capture_units(Alike(), ids, device="RTX-4090")


def test_a_bound_holds_for_choices_of_which_another_was_taken() -> None:
    """Of alike units one choice is taken; tables stay in each, where they are looked up."""
    on = cluster("RTX-4090", 2)
    made = functools.cache(lambda c: assemble(alike(), c, on))
    found, paths = what_may_wait(alike(), HERE, on), [f"h.{i}" for i in range(4)]
    assert found is not None
    choices = [
        replace(THERE, staying=(*root, *some, "tables.0", "tables.1"))
        for root in ((), ("",))
        for count in range(5)
        for some in combinations(paths, count)
        if count < 4 or not root
    ]
    low, *_, high = (minimum_budget(made(c).graph).least_bytes for c in (choices[0], HERE))
    budget = low + (high - low) * 3 // 4
    least = {c: lower_bound(made(c).graph, budget) for c in choices}
    choice = HostChoice(found, budget, math.inf)
    choice.deepen()
    taken = list[Configuration]()
    while choice.bound_seconds < math.inf:
        if (room := choice.room_bytes) is not None:
            choice.learn(room, lower_bound(found.step.graph, room))
            continue
        bound = min(choice.bound_seconds, choice.others_seconds)
        assert bound <= min(v for c, v in least.items() if c not in taken) * (1 + ROUNDING)
        taken.append(replace(THERE, staying=choice.take()))
    assert len(taken) < len(choices)
    others = min(v for c, v in least.items() if c not in taken)
    assert choice.others_seconds <= others * (1 + ROUNDING)
    assert all(made(c).row_wise == made(HERE).row_wise for c in taken)
    assert made(HERE).row_wise
    assert any(not c.on_host("h.1") and c.on_host("h.2") for c in taken), "the last leave first"
    assert not any(c.on_host("h.1") and not c.on_host("h.2") for c in taken)
