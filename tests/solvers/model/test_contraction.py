"""Steps contracted to blocks: any order of the small graph is one of the large."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.graphs import Graph, schedule_from_order, simulate
from planner.solvers import floor_bytes
from planner.solvers.model.contraction import contract, leanest
from planner.solvers.model.order_from_kept import turning_point
from planner.solvers.model.problem import flatten, held_bytes
from planner.solvers.search.block_plans import partitions
from planner.solvers.search.evict import fit
from tests.strategies import chain, random_graph, transformer, unet

STEPS = {"transformer": transformer(4), "unet": unet(3), "chain": chain(9)}


def parted(graph: Graph) -> list[list[int]]:
    """Return ways to part a step: its blocks, or every few ops."""
    turn = turning_point(graph)
    return [*partitions(graph, turn, 1), list(range(2, turn, 3)), [turn // 2]]


@pytest.mark.parametrize("name", STEPS)
def test_parts_hold_every_op_once_and_their_orders_are_orders_of_the_step(name: str) -> None:
    graph, expanded = STEPS[name], 0
    problem = flatten(graph)
    for starts in parted(graph):
        step = contract(graph, starts)
        assert [o for part in step.parts for o in part.ops] == list(range(problem.n))
        for grant in (0.0, 0.5, 1.0):
            small = step.small(
                [p.floor_bytes + int(grant * (p.peak_bytes - p.floor_bytes)) for p in step.parts]
            )
            peak = int(held_bytes(flatten(small), range(len(small.ops))).max())
            for budget in (peak, (peak + floor_bytes(small)) // 2, floor_bytes(small)):
                order = fit(flatten(small), range(len(small.ops)), budget)
                if order is None:
                    continue
                found, ends = step.expand(small, order)
                expanded += 1
                simulate(graph, schedule_from_order(graph, found))
                assert list(dict.fromkeys(found)) == list(range(problem.n))
                assert (ends[0], ends[-1], len(ends)) == (0, len(found), len(step.parts) + 1)
                for part, (a, b) in zip(step.parts, pairwise(ends), strict=True):
                    assert set(part.ops) <= set(found[a:b])
    assert expanded >= 6


def test_what_is_granted_in_full_needs_no_more_than_the_small_graph_says() -> None:
    graph = STEPS["transformer"]
    step = contract(graph, next(partitions(graph, turning_point(graph), 1)))
    small = step.small([part.peak_bytes for part in step.parts])
    order, _ = step.expand(small, range(len(small.ops)))
    most = held_bytes(flatten(small), range(len(small.ops))).max()
    assert held_bytes(step.problem, order).max() <= most


@pytest.mark.parametrize("seed", range(40))
def test_the_leanest_order_keeps_what_must_precede(seed: int) -> None:
    problem = flatten(random_graph(seed, max_ops=10))
    order = leanest(problem, range(problem.n), problem.ends)
    assert sorted(order) == list(range(problem.n))
    held_bytes(problem, order)  # asserts that nothing is read before it is made


def test_what_frees_most_runs_first() -> None:
    problem = flatten(STEPS["chain"])
    assert leanest(problem, range(problem.n), problem.ends)[:3] == [0, 1, 2]
