"""What a strategy says of a step's graph; the passes of this folder ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.graphs.hardware.cluster import Cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Spread
from planner.sharding.step_graph.builder import Draft
from planner.sharding.step_graph.parameter_groups import GroupSeconds, ParameterGroup

if TYPE_CHECKING:
    from planner.sharding.wrapped.boundary import Parameter


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes of a whole model's states; ``gradients`` are those of what it trains."""

    parameters: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class StepRules:
    """What resides, what is gathered and what is reduced in the graph of one rank's step.

    A group is the root (``ROOT``) or a unit, by its index in the draft.

    Args:
        parameter_ranks: over how many ranks parameters and gradients are parted.
        group_seconds: how long a group is gathered and reduced, if nothing hides it.
        optimizer_part: what the optimizer of the fullest rank sees of the trained parameters.
        after_update_seconds: what follows the optimizer's update of so many bytes of parameters.
        reside: adds what stays of a group, and its weight to ``draft.weights`` if that is whole.
        hold: adds what else is there from end to end.
        gather: adds the ops that make a group's weight before it is used, and the weight to
            ``draft.weights``; returns those that may run again. It gets the group and the one used
            before; ``draft.hidden`` are the seconds of compute that may hide them.
        reduce: adds the ops that reduce a group's gradients, which it gets as values.
        least_states: what a rank holds of parameters, gradients and the optimizer's state from end
            to end at the least; it gets the bytes of all of each, and the configuration.
        row_wise_seconds: what it takes to look up the rows of a table where they are and to bring
            its gradients there, forward and backward; ``None`` where it has to be gathered.
        waiting_seconds: how much longer at least a micro-step takes if a group's states, which are
            on the device, were on the host; ``None`` if none can be.
        late_without_inputs: a group from which no gradient goes on is let go of and reduced when
            all of backward is over.
        copies_gradients: the root's gradients are copied one by one as they are made, so that the
            op that ends its backward holds none.
    """

    parameter_ranks: Callable[[Spread], int]
    group_seconds: Callable[[ParameterGroup, Spread, Cluster], GroupSeconds]
    optimizer_part: Callable[[Sequence[Parameter], Spread], Sequence[Parameter]]
    after_update_seconds: Callable[[int, Spread, Cluster], float]
    reside: Callable[[Draft, int], None]
    hold: Callable[[Draft], None]
    gather: Callable[[Draft, int, int | None], tuple[int, ...]]
    reduce: Callable[[Draft, int, Sequence[int]], None]
    least_states: Callable[[ModelStates, Configuration], int]
    row_wise_seconds: Callable[[Draft, int], tuple[float, float] | None] = lambda draft, unit: None
    waiting_seconds: Callable[[Draft, int], float] | None = None
    late_without_inputs: bool = False
    copies_gradients: bool = False
