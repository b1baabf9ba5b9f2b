"""The edge of the budget: feasible at the least, and not one byte below."""

from __future__ import annotations

import math

import pytest

from planner.graphs import Graph, Op, Value, simulate
from planner.solvers import (
    SOLVERS,
    Limits,
    Status,
    binding_op,
    floor_bytes,
    minimum_budget,
    solve,
)
from tests.brute import brute
from tests.solvers.instances import INSTANCES
from tests.strategies import chain, random_graph

EXACTLY = Limits(seconds=30, gap=0.0)


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_infeasible_below_the_floor(method: str, name: str) -> None:
    graph = INSTANCES[name]
    solution = solve(graph, floor_bytes(graph) - 1, method=method)
    assert solution.status is Status.INFEASIBLE
    assert math.isinf(solution.bound_seconds)
    assert binding_op(graph) in solution.message
    assert str(floor_bytes(graph)) in solution.message


def _least_budget(graph: Graph) -> int:
    budget = floor_bytes(graph)
    while math.isinf(brute(graph, budget)):
        budget += 1
    return budget


@pytest.mark.parametrize("graph", [chain(4), *map(random_graph, range(20, 32))], ids=str)
@pytest.mark.parametrize("method", ["auto", "milp"])
def test_feasible_at_the_least_budget_only(method: str, graph: Graph) -> None:
    least = _least_budget(graph)
    solution = solve(graph, least, method=method, limits=EXACTLY)
    assert solution.schedule is not None
    assert simulate(graph, solution.schedule).peak_bytes <= least
    assert solve(graph, least - 1, method=method, limits=EXACTLY).schedule is None


@pytest.mark.parametrize("length", [3, 5, 8])
def test_one_byte_less_than_plain_costs_a_chain_one_step(length: int) -> None:
    graph = chain(length)
    plain_schedule = solve(graph, length + 2, method="plain")
    assert plain_schedule.status is Status.OPTIMAL
    assert solve(graph, length + 1, method="plain").status is Status.UNKNOWN
    below = solve(graph, length + 1, method="milp", limits=EXACTLY)
    assert below.schedule is not None
    assert simulate(graph, below.schedule).seconds == graph.seconds + 1


@pytest.mark.parametrize("length", [4, 24])
def test_a_step_that_takes_no_time(length: int) -> None:
    """Nothing is gained or lost by running again: whatever fits is the best."""
    ops = [Op(f"f{i}", "f", (i - 1,) if i else (), (i,)) for i in range(length)]
    for i in reversed(range(length)):
        made = 2 * length - 1 - i
        reads = (i,) if i == length - 1 else (made - 1, i)
        ops.append(Op(f"b{i}", "b", reads, (made,), recomputable=False))
    graph = Graph(tuple(ops), tuple(Value(f"v{i}", 10) for i in range(2 * length)))
    least = minimum_budget(graph)
    assert least.least_bytes == least.floor_bytes == 30
    assert solve(graph, 30).status is Status.OPTIMAL
    assert solve(graph, 19).status is Status.INFEASIBLE
