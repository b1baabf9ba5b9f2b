"""What the joint plan is compared with: every recipe at its best, none lost by ruling out."""

import pytest

from benchmarks.joint import best_recipes
from planner.sharding.configurations import configurations
from planner.sharding.pricing import Planned, price_recipes
from planner.sharding.space import Space
from tests.sharded_steps import Sizes, step


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(activation=60), Sizes(weight=1000)])
@pytest.mark.parametrize("budget", [2000, 900, 500])
def test_every_recipe_at_its_best(sizes: Sizes, budget: int) -> None:
    among = configurations(8, 32, devices_per_node=4)
    space = Space(among, lambda _: 0.0, lambda c: step(c, sizes))
    every = [planned for c in among for planned in price_recipes(c, space.open(c))]
    found = best_recipes(space, budget)
    assert {str(recipe) for recipe in found} == {str(planned.recipe) for planned in every}
    for recipe, best in found.items():
        mine = [planned for planned in every if planned.recipe == recipe]
        assert _value(best, budget) == min(_value(planned, budget) for planned in mine)


def _value(planned: Planned, budget: int) -> tuple[bool, float]:
    over = planned.peak_bytes > budget
    return over, planned.peak_bytes if over else planned.seconds
