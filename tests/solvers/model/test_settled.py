"""Ops that leave no choice can be left out: the same schedules, the same optimum."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from planner.graphs import Graph, Op, Value, plain_schedule, schedule_from_order, simulate
from planner.solvers import Limits, Status, floor_bytes, minimum_budget, solve
from planner.solvers.given_order import lower_bound
from planner.solvers.model.settled import shorten
from tests.brute import brute
from tests.strategies import random_graph


def with_updates(seed: int) -> Graph:
    """Return a random graph some of whose ops are followed by updates of what they make."""
    graph, draw = random_graph(seed, max_ops=4), random.Random(seed)
    ops, values = list[Op](), list(graph.values)

    def value(size_bytes: int) -> int:
        values.append(Value(f"v{len(values)}", size_bytes))
        return len(values) - 1

    buffer = value(3)
    for op in graph.ops:
        if draw.random() < 0.3:  # a count, and what writes it
            made, workspace = value(draw.randint(0, 2)), draw.randint(0, 3)
            count = Op("count", "f", (buffer,), (made,), 0.25, workspace_bytes=workspace)
            write = Op("write", "f", (made,), (), 0.125, workspace_bytes=draw.randint(0, 1))
            ops += [replace(o, recomputable=False) for o in (count, write)]
        made_too = [value(draw.randint(0, 3)) for _ in range(draw.choice((0, 1, 1, 2)))]
        ops.append(replace(op, outputs=(*op.outputs, *made_too)))
        for v in made_too:
            read = draw.choice([(v,), (v, buffer), (v, *op.outputs[:1])])
            update = Op("update", "f", read, (), 0.5, workspace_bytes=draw.randint(0, 2))
            ops.append(replace(update, recomputable=draw.random() < 0.1))
    return Graph(tuple(ops), tuple(values), graph.outputs)


@pytest.mark.parametrize("first_seed", [0, 60])
def test_the_optimum_is_the_same(first_seed: int) -> None:
    shortened = 0
    for seed in range(first_seed, first_seed + 60):
        graph = with_updates(seed)
        if len(graph.ops) > 10 or (short := shorten(graph)) is None:
            continue
        shortened += 1
        low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
        assert simulate(short.graph, plain_schedule(short.graph)).peak_bytes == high
        for budget in {low, (low + high) // 2, high - 1, high}:
            best = brute(short.graph, budget)
            assert math.isclose(brute(graph, budget), best + short.seconds), (seed, budget)
            found = solve(short.graph, budget, limits=Limits(gap=0.0))
            if found.status is Status.OPTIMAL and found.schedule is not None:
                order = short.expand(found.schedule.order)
                trace = simulate(graph, schedule_from_order(graph, order))
                assert trace.peak_bytes <= budget
                assert math.isclose(trace.seconds, best + short.seconds)
    assert shortened > 30


def test_updates_are_beside_the_op_that_made_what_they_read() -> None:
    ops = (
        Op("count", "f", (0,), (1,), 1.0, recomputable=False),
        Op("write", "f", (1,), (), 1.0, recomputable=False),
        Op("norm", "f", (0,), (2, 3), 1.0),
        Op("update", "f", (3, 0), (), 1.0, recomputable=False),
        Op("loss", "f", (2,), (4,), 1.0),
    )
    short = shorten(Graph(ops, tuple(Value(x, 8) for x in "xcnsl"), frozenset({4})))
    assert short is not None
    assert [op.name for op in short.graph.ops] == ["norm", "loss"]
    assert short.expand([0, 1, 0]) == [0, 1, 2, 3, 4, 2]


@pytest.mark.parametrize(
    "update",
    [
        Op("update", "f", (1,), (), recomputable=True),
        Op("update", "f", (1,), (3,), recomputable=False),
        Op("update", "f", (1, 2), (), recomputable=False),
        Op("update", "f", (1,), (), workspace_bytes=9, recomputable=False),
    ],
)
def test_what_leaves_a_choice_stays(update: Op) -> None:
    ops = (
        Op("a", "f", (), (1,)),
        Op("b", "f", (), (0, 2)),
        replace(update, inputs=tuple(2 if v == 1 else v for v in update.inputs))
        if update.inputs == (1,)
        else update,
        Op("c", "f", (0, 1), (4,)),
        Op("d", "f", (4, 2) if update.inputs == (1,) else (4,), (5,)),
    )
    values = tuple(Value(str(v), 8) for v in range(6))
    assert shorten(Graph(ops, values, frozenset({5}))) is None


@pytest.mark.parametrize("seed", range(6))
def test_every_path_takes_them_out(seed: int) -> None:
    graph = with_updates(seed)
    plain = simulate(graph, plain_schedule(graph)).peak_bytes
    least = minimum_budget(graph)
    assert simulate(graph, least.schedule).peak_bytes == least.least_bytes
    for budget in (least.least_bytes, plain):
        found = solve(graph, budget)
        assert found.schedule is not None
        trace = simulate(graph, found.schedule)
        assert trace.peak_bytes <= budget
        assert lower_bound(graph, budget) <= found.bound_seconds + 1e-9 <= trace.seconds + 2e-9
    assert solve(graph, least.floor_bytes - 1).status is Status.INFEASIBLE
