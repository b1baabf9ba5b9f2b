"""The search over configurations against trying everything, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from planner.errors import CaptureError
from planner.graphs import schedule_from_order
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.configurations import configurations
from planner.sharding.pricing import Planned, plan_step, price_recipes
from planner.sharding.search import ON_HOST, explore
from planner.sharding.space import SearchResult, Space
from planner.sharding.step_graph.sharded_step import Realized
from planner.solvers import Limits, lower_bound, minimum_budget
from tests.sharded_steps import FakeStep, Sizes, step

EXACT = Limits(gap=0.0)


def space_of(sizes: Sizes, *, world: int = 4, batch: int = 16, offload: bool = True) -> Space:
    found = configurations(world, batch, devices_per_node=2, offload=offload)
    return Space(found, lambda _: 0.0, lambda c: step(c, sizes))


def with_host(room: int) -> Space:
    """Return a space whose states take 120 bytes of a host that has so many for them."""
    return replace(
        space_of(Sizes(), offload=True),
        open=lambda c: replace(step(c, Sizes()), host_bytes=120 if c.offload else 0),
        host_bytes=room,
    )


def everything(space: Space, budget: int) -> list[Planned]:
    """Solve every configuration, none left out."""
    solved = (plan_step(c, space.open(c), budget, limits=EXACT) for c in space.configurations)
    return [planned for planned in solved if planned is not None]


BUDGETS = (2000, 1300, 900, 700, 500, 400, 300)
MODELS = (Sizes(), Sizes(gather=4.0), Sizes(activation=60), Sizes(units=2, temporaries=800))


@pytest.mark.parametrize("sizes", MODELS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_finds_what_trying_everything_finds(sizes: Sizes, budget: int) -> None:
    space = space_of(sizes)
    found, known = explore(space, budget, limits=EXACT), everything(space, budget)
    assert found.finished
    if not known:
        assert found.best is None
        assert found.bound_seconds == math.inf
        return
    assert found.best is not None
    assert found.best.peak_bytes <= budget
    assert found.best.seconds == pytest.approx(min(p.seconds for p in known))
    assert found.bound_seconds == pytest.approx(found.best.seconds)


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_bound_is_above_a_plan(budget: int) -> None:
    space = space_of(Sizes())
    known = {p.configuration: p.seconds for p in everything(space, budget)}
    for outcome in explore(space, budget, limits=EXACT).outcomes:
        assert outcome.bound_seconds <= known.get(outcome.configuration, math.inf) * (1 + 1e-9)


@pytest.mark.parametrize("sizes", MODELS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_never_worse_than_a_recipe_however_wide_the_gap(sizes: Sizes, budget: int) -> None:
    space = space_of(sizes)
    best = explore(space, budget, limits=Limits(gap=0.5)).best
    for c in space.configurations:
        for recipe in price_recipes(c, space.open(c)):
            if recipe.peak_bytes <= budget:
                assert best is not None
                assert best.seconds <= recipe.seconds


def test_more_budget_never_costs_more() -> None:
    seconds = [_seconds(explore(space_of(Sizes()), b, limits=EXACT)) for b in sorted(BUDGETS)]
    assert seconds == sorted(seconds, reverse=True)


def test_most_configurations_are_never_solved() -> None:
    space, solved = space_of(Sizes()), list[str]()
    explore(space, 900, tell=solved.append)
    assert sum(text.startswith("solving") for text in solved) < len(space.configurations) / 2


def test_without_time_the_most_promising_is_solved_and_the_bound_holds() -> None:
    space, told = space_of(Sizes()), list[str]()
    found = explore(space, 900, limits=Limits(seconds=1e-9, gap=0.0), tell=told.append)
    best = explore(space, 900, limits=EXACT).best
    assert sum(text.startswith("solving") for text in told) == 1
    assert best is not None
    assert found.best is not None
    assert found.bound_seconds <= best.seconds <= found.best.seconds


@pytest.mark.parametrize("sizes", MODELS[:2])
@pytest.mark.parametrize("budget", [900, 700])
def test_what_the_host_is_worth_is_known(sizes: Sizes, budget: int) -> None:
    found = explore(space_of(sizes), budget, limits=EXACT)
    without = explore(space_of(sizes, offload=False), budget, limits=EXACT)
    assert found.best is not None
    assert without.best is not None
    assert found.best.configuration.offload
    there = [o for o in found.outcomes if not o.configuration.offload and o.seconds is not None]
    assert min(o.seconds or 0.0 for o in there) == pytest.approx(without.best.seconds)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("room", [119, 120])
def test_states_go_to_a_host_that_has_room_for_them(budget: int, room: int) -> None:
    """As if they could not go there at all, where it has not."""
    found = explore(with_host(room), budget, limits=EXACT)
    same = explore(space_of(Sizes(), offload=room >= 120), budget, limits=EXACT)
    assert (found.best is None) == (same.best is None)
    if found.best is not None and same.best is not None:
        assert found.best.seconds == pytest.approx(same.best.seconds)
        assert found.bound_seconds == pytest.approx(same.bound_seconds)


def test_what_is_opened_last_says_why_it_does_not_fit() -> None:
    """What has no room on the host is no plan to come close with, and says so."""
    held = replace(with_host(119), least_bytes=lambda c: 10_000 - c.offload)
    found = explore(held, 100, limits=EXACT)
    assert not found.closest.configuration.offload
    assert any(o.fills.startswith(ON_HOST) for o in found.outcomes if o.configuration.offload)
    alone = replace(held, configurations=tuple(c for c in held.configurations if c.offload))
    with pytest.raises(CaptureError, match=ON_HOST):
        explore(alone, 100, limits=EXACT)


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_lost_beside_the_tensors_counts(budget: int) -> None:
    """Losing as much of every plan is as a budget that is smaller by as much."""
    space, lost = space_of(Sizes()), 100
    found = explore(space, budget, needs=lambda planned: planned.peak_bytes + lost, limits=EXACT)
    less = explore(space, budget - lost, limits=EXACT)
    assert _seconds(found) == pytest.approx(_seconds(less))
    assert found.bound_seconds <= _seconds(less)


def test_keeping_and_gathering_again_are_mixed() -> None:
    """With room for some weights only, some are kept and the others gathered again."""
    sizes = Sizes(units=4, activation=1, gather=2.0)
    c = Configuration(Strategy.FSDP, 4, 1, 1, 1)
    made = step(c, sizes)
    least = minimum_budget(made.graph).least_bytes
    kept = set[int]()
    for budget in range(least, least + 400, 50):
        planned = plan_step(c, made, budget, limits=EXACT)
        assert planned is not None
        kept.add(sum(u.keep_gathered for u in planned.units))
    assert {0, 1, 2, 3, 4} >= kept >= {1, 2, 3}


class Prefetching(FakeStep):
    """What runs gathers again three ops earlier than the solver says."""

    def realize(self, order: Sequence[int]) -> Realized:
        early, seen = list[int](), set[int]()
        for op in order:
            again = op in seen and self.graph.ops[op].target == "all_gather"
            early.insert(len(early) - 3 if again else len(early), op)
            seen.add(op)
        return Realized(schedule_from_order(self.graph, early), super().realize(order).units)


def test_what_runs_fits_even_if_it_holds_more_than_the_solver_thought() -> None:
    """The solver is asked for less until what runs fits, which may cost time."""
    c = Configuration(Strategy.FSDP, 4, 1, 1, 1)
    honest = step(c, Sizes(units=4, activation=20))
    least = minimum_budget(honest.graph).least_bytes
    asked_again = 0
    for budget in range(least, least + 400, 40):
        bound = lower_bound(honest.graph, budget)
        planned = plan_step(c, honest, budget, limits=EXACT)
        eager = plan_step(c, Prefetching(honest.graph, honest.units), budget, limits=EXACT)
        assert planned is not None
        assert planned.seconds >= bound * (1 - 1e-9)
        if eager is not None:
            assert eager.peak_bytes <= budget
            assert eager.seconds >= planned.seconds * (1 - 1e-9)
            asked_again += eager.seconds > planned.seconds
    assert asked_again


def _seconds(found: SearchResult) -> float:
    return math.inf if found.best is None else found.best.seconds
