"""The named instances of the solver tests."""

from __future__ import annotations

from planner.graphs import Graph, plain_schedule, simulate
from planner.solvers import floor_bytes
from tests.strategies import chain, random_graph, transformer, unet

INSTANCES: dict[str, Graph] = {
    "chain": chain(8),
    "transformer": transformer(2),
    "unet": unet(3),
    "random": random_graph(15, max_ops=16),
}
FRACTIONS = (1.0, 0.7, 0.4, 0.1)
"""Budgets: the floor plus so much of the way from there to what store-all holds."""


def budget_of(graph: Graph, fraction: float) -> int:
    """Return the budget at a fraction of the way from the floor to store-all."""
    floor = floor_bytes(graph)
    return floor + int(fraction * (simulate(graph, plain_schedule(graph)).peak_bytes - floor))
