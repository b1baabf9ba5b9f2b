"""Orders of first runs that a graph allows, and a graph whose given order is poor."""

from __future__ import annotations

import random

from planner.graphs import Graph, Op, Value
from planner.solvers.model.precedence import Freedom


def random_order(free: Freedom, rng: random.Random) -> list[int]:
    """Return an order that is allowed, drawn step by step."""
    order: list[int] = []
    left = list(range(len(free.part)))
    while left:
        ready = [
            o
            for o in left
            if free.part[o] == free.part[left[0]] and not set(free.before[o]).intersection(left)
        ]
        order.append(rng.choice(ready))
        left.remove(order[-1])
    return order


def with_repeats(graph: Graph, rng: random.Random) -> list[int]:
    """Return a valid order whose first runs are in order, and repeated ones, some for nothing."""
    order = list(range(len(graph.ops)))
    again = [o for o in order if graph.ops[o].recomputable]
    for _ in range(rng.randint(0, 2 * len(order)) if again else 0):
        op = rng.choice(again)
        order.insert(rng.randint(order.index(op) + 1, len(order)), op)
    return order


def wide(branches: int) -> Graph:
    """Return branches that all grow before any of them is reduced."""
    ops, values = [], list[Value]()
    for name, size in (("grow", 90), ("again", 90), ("reduce", 1)):
        for k in range(branches):
            inputs = () if name == "grow" else (len(values) - branches,)
            ops.append(Op(f"{name} {k}", name, inputs, (len(values),), seconds=1.0))
            values.append(Value(f"{name} {k}", size))
    last = tuple(range(len(values) - branches, len(values)))
    ops.append(Op("join", "join", last, (len(values),), seconds=1.0))
    values.append(Value("join", 1))
    return Graph(tuple(ops), tuple(values), frozenset({len(values) - 1}), f"wide {branches}")
