"""What people do without a planner: a ZeRO stage for the whole model, each unit checkpointed.

Each recipe is written as an order of the assembled graph, so that it is priced by the very same
rules as a plan.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from planner.graphs import Graph, Kind
from planner.plan.configuration import Configuration
from planner.plan.strategy import UnitStage
from planner.solvers.model.order_from_kept import order_from_kept, turning_point


class Checkpoint(enum.Enum):
    """What checkpointing of every unit recomputes.

    SELECTIVE keeps what products (matrix, convolution, attention) made and runs the rest again, as
    torch's selective activation checkpointing does. FULL keeps what enters the units, and runs no
    more of a unit again than its backward needs.
    """

    NONE = "no recomputation"
    SELECTIVE = "selective checkpointing"
    FULL = "full checkpointing"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A stage of ZeRO for all units alike, and one way to checkpoint them.

    >>> from planner.plan.strategy import strategy_of
    >>> print(Recipe(strategy_of("fsdp").stages[1], Checkpoint.FULL))
    ZeRO-3, full checkpointing
    """

    stage: UnitStage
    checkpoint: Checkpoint

    def __str__(self) -> str:
        """Name it as people do."""
        return f"{self.stage.recipe}, {self.checkpoint.value}"


def recipes(configuration: Configuration, graph: Graph) -> Iterator[tuple[Recipe, list[int]]]:
    """Yield every recipe of this configuration with its order of the assembled graph.

    The one that holds least comes first.
    """
    turn, stages = turning_point(graph), configuration.strategy.stages
    for checkpoint, stage in product(reversed(Checkpoint), reversed(stages)):
        kept = _kept(graph, turn, checkpoint, keep_gathered=stage is stages[0])
        yield Recipe(stage, checkpoint), order_from_kept(graph, kept, turn)


def _kept(graph: Graph, turn: int, checkpoint: Checkpoint, *, keep_gathered: bool) -> set[int]:
    """Return the forward values that a recipe keeps until backward."""
    kept = set[int]()
    for op in graph.ops[:turn]:
        for value in op.outputs:
            gathered = graph.values[value].kind is Kind.GATHERED
            product_of = checkpoint is Checkpoint.SELECTIVE and op.flops > 0
            if keep_gathered if gathered else checkpoint is Checkpoint.NONE or product_of:
                kept.add(value)
    return kept
