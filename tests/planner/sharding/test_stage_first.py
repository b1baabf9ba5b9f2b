"""Stage first, then checkpointing: never better than choosing together, and where it is worse."""

from __future__ import annotations

import pytest

from planner.plan.configuration import Configuration
from planner.sharding.configurations import configurations
from planner.sharding.pricing import keeping_gathered
from planner.sharding.search import explore
from planner.sharding.space import Space
from planner.sharding.stage_first import stage_first, state_bytes
from planner.solvers import Limits, solve
from tests.sharded_steps import Sizes, step

EXACT = Limits(gap=0.0)


def _space(sizes: Sizes, *, offload: bool = True) -> Space:
    among = configurations(4, 16, devices_per_node=4, offload=offload)
    return Space(among, lambda _: 0.0, lambda c: step(c, sizes))


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(gather=4.0), Sizes(activation=60)])
@pytest.mark.parametrize("budget", [2500, 1500, 1300, 900, 700, 500])
def test_choosing_together_is_never_worse(sizes: Sizes, budget: int) -> None:
    space = _space(sizes)
    together = explore(space, budget, limits=EXACT).best
    one_by_one = stage_first(space, budget, limits=EXACT).planned
    if one_by_one is not None:
        assert one_by_one.peak_bytes <= budget
        assert together is not None
        assert together.seconds <= one_by_one.seconds


def test_a_stage_whose_states_just_fit_leaves_no_room_for_anything_else() -> None:
    """DDP's states fit, its activations never do; a stage further all is well."""
    space = _space(Sizes(activation=40), offload=False)
    budget = 1560  # 300 of weights, as much of gradients, three times that of state, 40 of input
    usual = stage_first(space, budget, limits=EXACT)
    assert (usual.stage, usual.planned) == (0, None)
    assert explore(space, budget, limits=EXACT).best is not None


def test_the_lowest_stage_pays_in_recomputation_and_small_batches() -> None:
    space = _space(Sizes(gather=0.0, reduce=0.1, launch=3.0), offload=False)
    usual = stage_first(space, 1700, limits=EXACT)
    together = explore(space, 1700, limits=EXACT).best
    assert usual.stage == 0
    assert usual.planned is not None
    assert together is not None
    assert together.seconds < 0.97 * usual.planned.seconds


def _whole() -> list[Configuration]:
    """Return DDP, ZeRO-1 and FSDP over all four ranks."""
    found = configurations(4, 4, devices_per_node=4, offload=False)
    return [c for c in found if c.shard_ranks in {1, 4}]


def test_states_by_stage() -> None:
    """Weights w, state 3w and gradients w of three units of 100 bytes over four ranks."""
    found = {}
    for c in _whole():
        found[c.strategy.name] = step(c, Sizes(activation=0)).graph
    assert state_bytes(found["ddp"], keep_gathered=True) == 300 + 900 + 300
    assert state_bytes(found["zero1"], keep_gathered=True) == 300 + 225 + 300
    assert state_bytes(found["fsdp"], keep_gathered=False) == 75 + 225 + 75
    assert state_bytes(found["fsdp"], keep_gathered=True) == 75 + 225 + 75 + 300


def test_weights_that_stay_are_never_gathered_again() -> None:
    c = _whole()[-1]
    graph = step(c, Sizes()).graph
    kept = keeping_gathered(graph)
    budget = 1000
    free, forced = solve(graph, budget), solve(kept, budget)
    assert forced.schedule is not None
    assert free.schedule is not None
    gathers = [i for i, op in enumerate(graph.ops) if op.target == "all_gather"]
    assert all(forced.schedule.order.count(i) == 1 for i in gathers)
