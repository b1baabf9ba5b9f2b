"""A strategy made for a test: one program that shards, replicates and sends nothing.

This is all there is to write for one; ``register_strategy(ALONE)`` is the line beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.graphs import Kind
from planner.plan.strategy import Spread, UnitStage
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.parameter_groups import GroupSeconds
from planner.sharding.strategies.ddp import DDP, STEP


def check(spread: Spread) -> None:
    if spread != Spread(1):
        raise ValueError("one program has one rank")


def hold(draft: Draft) -> None:
    if draft.configuration.accumulation > 1:
        size = sum(group.reduced for group in draft.groups.values())
        draft.value("accumulated gradients", size, Kind.GRADIENT)


def reduce(draft: Draft, i: int, gradients: Sequence[int]) -> None:
    """Leave every gradient to the optimizer, or to what micro-steps have added up."""
    if draft.configuration.accumulation == 1:
        draft.shards += gradients


ALONE = replace(
    DDP,
    name="alone",
    label="Alone",
    title="one program",
    stages=(UnitStage(0, "nothing sharded", "in this program"),),
    spreads=lambda world_size, devices_per_node: [Spread(1)] if world_size == 1 else [],
    check=check,
    mesh=lambda spread: (("alone", 1),),
    parts=(
        replace(
            STEP,
            group_seconds=lambda group, spread, cluster: GroupSeconds(0.0, 0.0),
            hold=hold,
            reduce=reduce,
            copies_gradients=False,
        ),
    ),
)
