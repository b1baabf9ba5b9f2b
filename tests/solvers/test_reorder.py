"""Reordering: what may move, what moving costs, and bounds that hold for any order."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from planner.graphs import Graph, Op, Phase, Value, plain_schedule, simulate
from planner.solvers import Limits, Status, floor_bytes, solve
from planner.solvers.bounds.any_order import bound_any_order
from planner.solvers.model.precedence import freedom, permuted
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.anneal_order import _Line, anneal_order, greedy
from tests.brute import brute, brute_any_order
from tests.orders import random_order, wide
from tests.strategies import random_graph, transformer, unet


def _budgets(graph: Graph) -> list[int]:
    low, high = floor_bytes(graph), simulate(graph, plain_schedule(graph)).peak_bytes
    return sorted({low, (low + high) // 2})


@pytest.mark.parametrize("first_seed", range(0, 150, 50))
def test_the_bound_holds_for_any_order(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        graph = random_graph(seed, max_ops=7)
        free = freedom(graph)
        for budget in _budgets(graph):
            optimum = brute_any_order(graph, budget, free.ancestors())
            assert optimum <= brute(graph, budget)
            bound = graph.seconds + bound_any_order(flatten(graph), free, budget)
            assert bound <= optimum + 1e-6, graph.name
            solution = solve(graph, budget, method="reorder")
            assert solution.bound_seconds <= optimum + 1e-6, graph.name
            if solution.status is Status.INFEASIBLE:
                assert math.isinf(optimum), graph.name
            if solution.schedule is not None:
                assert simulate(graph, solution.schedule).seconds >= optimum - 1e-6, graph.name


def test_any_order_sometimes_beats_the_given_one_and_is_found() -> None:
    cheaper = 0
    for seed in range(60):
        graph = random_graph(seed, max_ops=7)
        budget = _budgets(graph)[-1]
        found = solve(graph, budget, method="reorder")
        if found.schedule is not None:
            cheaper += simulate(graph, found.schedule).seconds < brute(graph, budget)
            assert found.reordered or simulate(graph, found.schedule).seconds >= brute(
                graph, budget
            )
    assert cheaper >= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_move_changes_what_is_held_as_worked_out(seed: int) -> None:
    graph, rng = random_graph(seed, max_ops=14), random.Random(seed)
    problem, free = flatten(graph), freedom(graph)
    budget = max(1, floor_bytes(graph))
    line = _Line(problem, random_order(free, rng), budget)
    for _ in range(30):
        p = rng.randrange(problem.n)
        op, position = line.order[p], line.position
        low = max((position[u] for u in free.before[op]), default=-1) + 1
        high = min((position[u] for u in free.after[op]), default=problem.n) - 1
        if low < high:
            q = rng.choice([i for i in range(low, high + 1) if i != p])
            before, change = line.total(), line.propose(p, q)
            line.accept(change)
            assert line.total() == pytest.approx(before + change.cost)
        assert np.allclose(line.held * budget, held_bytes(problem, line.order))


def test_an_order_that_holds_the_very_budget_fits() -> None:
    problem = flatten(wide(2))
    order = [0, 2, 4, 1, 3, 5, 6]
    most = int(held_bytes(problem, order).max())
    assert _Line(problem, order, most).fits()
    assert not _Line(problem, order, most - 1).fits()


@pytest.mark.parametrize("graph", [transformer(2), unet(3), random_graph(15, max_ops=16), wide(6)])
def test_every_order_is_one_that_is_allowed(graph: Graph) -> None:
    problem, free = flatten(graph), freedom(graph)
    budget = floor_bytes(graph)
    for order in (greedy(problem, free), anneal_order(problem, free, budget, moves=500)):
        assert sorted(order) == list(range(problem.n))
        place = {o: i for i, o in enumerate(order)}
        ancestors = free.ancestors()
        for o in order:
            assert all(place[u] < place[o] for u in range(problem.n) if ancestors[o] >> u & 1)
        assert [graph.ops[o].phase for o in order] == [op.phase for op in graph.ops]
        once = [o for o in order if not graph.ops[o].recomputable]
        assert once == sorted(once)
        assert permuted(graph, order).values == graph.values


def test_kernels_that_draw_keep_their_order_behind_what_they_read() -> None:
    draws = [
        op
        for k in range(3)
        for op in (
            Op(f"rng{k}", "rng_state", (), (2 * k,), recomputable=False),
            Op(f"drop{k}", "f", (2 * k,), (2 * k + 1,)),
        )
    ]
    free = freedom(Graph(tuple(draws), tuple(Value(f"{v}", 1) for v in range(6))))
    assert free.before == ((), (0,), (1,), (2,), (3,), (4,))


def test_what_opens_and_ends_a_phase_stays_there() -> None:
    forward = [Op("a", "f", (), (0,)), Op("b", "f", (), (1,))]
    back = [
        Op("tangent", "t", (), (2,), recomputable=False),
        Op("d a", "f", (0,), (3,)),
        Op("d b", "f", (1, 2), (4,)),
        Op("hand over", "h", (3,), (), recomputable=False),
    ]
    ops = (*forward, *(replace(op, phase=Phase.BACKWARD) for op in back))
    free = freedom(Graph(ops, tuple(Value(f"{v}", 1) for v in range(5))))
    assert free.part == (0, 0, 1, 2, 2, 3)
    assert free.spans == {0: (0, 2), 1: (2, 3), 2: (3, 5), 3: (5, 6)}


def test_auto_reorders_a_wide_graph_and_says_so() -> None:
    graph = wide(8)
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    budget = peak // 3
    free = solve(graph, budget)
    kept = solve(graph, budget, limits=Limits(reorder=False))
    assert free.schedule is not None
    assert free.reordered
    assert "first runs later than in the model; the bound holds for any order" in free.message
    assert simulate(graph, free.schedule).seconds == graph.seconds
    assert free.status is Status.OPTIMAL
    assert not kept.reordered
    assert kept.bound_seconds > graph.seconds


def test_communication_is_never_reordered() -> None:
    graph = wide(8)
    gather = replace(graph.ops[0], phase=Phase.COMMUNICATION)
    graph = replace(graph, ops=(gather, *graph.ops[1:]))
    budget = simulate(graph, plain_schedule(graph)).peak_bytes // 3
    assert not solve(graph, budget).reordered
    assert solve(graph, budget, method="reorder").status is Status.UNKNOWN


def test_the_same_seed_gives_the_same_order() -> None:
    graph = unet(4)
    budget = _budgets(graph)[-1]
    again = [solve(graph, budget, method="reorder") for _ in range(2)]
    assert again[0] == again[1]
