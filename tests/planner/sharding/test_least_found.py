"""The plan that holds least, against the least of every configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from planner.sharding.least_found import Least, least_found
from planner.sharding.pricing import keeping_gathered, price, price_recipes
from planner.sharding.search import explore
from planner.sharding.space import Space
from planner.solvers import Limits, minimum_budget
from tests.planner.sharding.test_search import MODELS, space_of
from tests.sharded_steps import Sizes


def least_of(space: Space, budget: int = 20, seconds: float = 60.0) -> Least:
    limits = Limits(seconds=seconds)
    found = explore(space, budget, limits=replace(limits, seconds=60.0))
    assert found.best is None
    return least_found(space, found, budget, limits=limits)


def every_least(space: Space) -> Iterator[int]:
    """Yield what the least plans of every configuration hold, none left out."""
    for c in space.configurations:
        step = space.open(c)
        yield from (planned.peak_bytes for planned in price_recipes(c, step))
        for graph in (step.graph, keeping_gathered(step.graph)):
            yield price(c, step, minimum_budget(graph).schedule.order).peak_bytes


@pytest.mark.parametrize("sizes", MODELS)
def test_is_the_least_of_every_configuration(sizes: Sizes) -> None:
    space = space_of(sizes)
    least = least_of(space)
    assert least.finished
    assert least.found.closest.peak_bytes == min(every_least(space))
    assert 20 < least.floor_bytes <= least.found.closest.peak_bytes


@pytest.mark.parametrize("sizes", MODELS)
def test_fits_in_what_it_holds_and_in_no_byte_less(sizes: Sizes) -> None:
    space = space_of(sizes)
    held = least_of(space).found.closest.peak_bytes
    for budget, fits in ((held, True), (held - 1, False)):
        found = explore(space, budget)
        best = found.best or least_found(space, found, budget).found.best
        assert (best is not None) == fits


def test_says_that_the_time_was_over() -> None:
    """One configuration is looked at all the same."""
    space = space_of(MODELS[2])
    least = least_of(space, seconds=1e-9)
    assert not least.finished
    assert least.floor_bytes <= min(every_least(space)) <= least.found.closest.peak_bytes
