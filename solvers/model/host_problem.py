"""What is to be solved where values may move to the host: the step, the budget, the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planner.graphs import Graph
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.host_memory import movable
from planner.solvers.model.problem import Problem, flatten


@dataclass(frozen=True)
class HostProblem:
    """A step, what it may hold on the device, and where its values may move to.

    >>> from planner.graphs import Op, Value
    >>> ops = (Op("a", "f", (), (0,)), Op("b", "f", (0,), (1,)))
    >>> g = Graph(ops, (Value("a", 3), Value("b", 4)))
    >>> sorted(HostProblem(g, 7, HostTier(1.0, 1.0)).movable)
    [0, 1]
    """

    graph: Graph
    budget_bytes: int
    tier: HostTier

    @cached_property
    def flat(self) -> Problem:
        """The step, flattened."""
        return flatten(self.graph)

    @cached_property
    def movable(self) -> frozenset[int]:
        """The values that may be away."""
        return movable(self.graph)
