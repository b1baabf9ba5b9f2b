"""One memory rule: whatever counts bytes quickly in the solvers agrees with ``simulate``.

Every fast evaluator is asked about the orders that it makes or is given, on graphs with workspace,
several outputs or none, outputs of the graph, values of no size and ops that may not run twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.graphs import (
    Graph,
    Subject,
    Trace,
    live_at,
    plain_schedule,
    schedule_from_order,
    simulate,
)
from planner.solvers import floor_bytes
from planner.solvers.bounds.any_order import _forced_bytes, _kin
from planner.solvers.exact.checkmate import build
from planner.solvers.exact.state_search import _indices, _Space, search_states
from planner.solvers.minimum_budget import proven_floor
from planner.solvers.model.forward_cuts import crossing, crossing_bytes
from planner.solvers.model.master import solve_master
from planner.solvers.model.order_from_kept import without_unread
from planner.solvers.model.precedence import freedom, permuted
from planner.solvers.model.problem import Problem, flatten, held_bytes
from planner.solvers.search.anneal_order import _draw, _Line
from planner.solvers.search.drop_single import drop_single
from planner.solvers.search.evict import _Eviction, _Stuck
from planner.solvers.search.prune import _State, prune
from planner.solvers.tuning import PATIENCES
from tests.orders import random_order, with_repeats
from tests.solvers.model.test_master import misses
from tests.strategies import graphs

Test = Callable[[Graph, random.Random], None]


def rule(examples: int, *, max_ops: int = 10) -> Callable[[Test], Callable[..., None]]:
    """Try a test on so many random graphs; a failure prints the graph and the seed of the rest."""

    def decorate(test: Test) -> Callable[..., None]:
        @settings(max_examples=examples, deadline=None)
        @given(graphs(max_ops, silent=True), st.integers(0, 10**6))
        def tried(graph: Graph, seed: int) -> None:
            test(graph, random.Random(seed))

        return tried

    return decorate


def judge(graph: Graph, order: Sequence[int]) -> tuple[Trace, list[int]]:
    """Return what ``simulate`` says of an order, and the bytes held while each op runs."""
    schedule = schedule_from_order(graph, order)
    trace = simulate(graph, schedule)
    runs = [i for i, s in enumerate(schedule.steps) if s.action.subject is Subject.OP]
    return trace, trace.live_bytes[runs].tolist()


def some_budget(graph: Graph, order: Sequence[int], rng: random.Random) -> int:
    """Return a budget between the least that could do and what an order holds."""
    return rng.randint(floor_bytes(graph), judge(graph, order)[0].peak_bytes)


@rule(100)
def test_what_an_order_holds_and_takes(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    trace, held = judge(graph, order)
    assert held_bytes(problem, order).tolist() == held
    assert problem.order_seconds(order) == pytest.approx(trace.seconds)


@rule(50)
def test_what_an_op_holds_of_its_own(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    schedule = schedule_from_order(graph, order)
    trace = simulate(graph, schedule)
    for i, step in enumerate(schedule.steps):
        if step.action.subject is Subject.OP:
            before = live_at(graph, schedule, i - 1) if i else ()
            others = sum(live.value.size_bytes for live in before if live.op is not None)
            assert problem.own(step.index) + others == trace.live_bytes[i]


@rule(150, max_ops=8)
def test_no_floor_is_above_what_a_schedule_holds(graph: Graph, rng: random.Random) -> None:
    floor = proven_floor(graph)
    assert floor_bytes(graph) <= floor <= judge(graph, with_repeats(graph, rng))[0].peak_bytes
    assert search_states(flatten(graph), floor - 1).order is None


@rule(50)
def test_what_an_op_forces_in_any_order(graph: Graph, rng: random.Random) -> None:
    problem, free = flatten(graph), freedom(graph)
    kin, order = _kin(free), random_order(free, rng)
    for op, held in zip(order, held_bytes(problem, order).tolist(), strict=True):
        assert _forced_bytes(problem, kin, op) <= held


@rule(50)
def test_what_crosses_a_position(graph: Graph, rng: random.Random) -> None:
    turn = rng.randint(0, len(graph.ops))
    for position, size in enumerate(crossing_bytes(graph, turn)):
        values = crossing(graph, turn, [position])
        assert size == sum(graph.values[v].size_bytes for v in values)


class _Watched(_Eviction):
    """Notes what the run believes to hold while each op of its order runs."""

    def __init__(self, problem: Problem, order: Sequence[int], budget: int, patience: float):
        super().__init__(problem, order, budget, patience, float("inf"))
        self.believed: list[int] = []

    def _make_room(self, needed: int) -> None:
        super()._make_room(needed)
        self.believed.append(self.p.resident_bytes + self.used + needed)

    def check(self) -> None:
        assert self.used == sum(self.p.sizes[v] for v in self.live)


@rule(600, max_ops=14)
def test_evictions_fit_and_know_what_they_hold(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    budget = some_budget(graph, order, rng)
    for patience in PATIENCES:
        run = _Watched(problem, order, budget, patience)
        try:
            for position, op in enumerate(order):
                run.step(position, op)
                run.check()
            run.finish(len(order))
        except _Stuck:
            continue
        run.check()
        trace, held = judge(graph, run.done)
        assert trace.peak_bytes <= budget
        assert len(held) == len(run.believed)
        for really, believed in zip(held, run.believed, strict=True):
            assert really <= believed <= budget


@rule(80, max_ops=14)
def test_moves_of_a_line_hold_what_they_say(graph: Graph, rng: random.Random) -> None:
    problem, free = flatten(graph), freedom(graph)
    budget = max(1, floor_bytes(graph))
    line = _Line(problem, random_order(free, rng), budget)
    for _ in range(20):
        if (move := _draw(line, free, rng)) is None:
            continue
        change = line.propose(*move)
        stop = change.first + len(change.order)
        moved = [*line.order[: change.first], *change.order, *line.order[stop:]]
        _, held = judge(graph, moved)
        assert np.allclose(change.held * budget, held[change.first : stop])
        if rng.random() < 0.7:
            line.accept(change)
        assert np.allclose(line.held * budget, judge(graph, line.order)[1])
        assert line.fits() == (max(held_bytes(problem, line.order)) <= budget)


@rule(500, max_ops=14)
def test_pruning_knows_what_is_held(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    before, _ = judge(graph, order)
    budget = before.peak_bytes + rng.randint(0, 5)
    state = _State(problem, order, budget)
    for i in state.candidates():
        if state.order[i] >= 0:
            state.remove(i)
            left = [op for op in state.order if op >= 0]
            held = [h for h, op in zip(state.held.tolist(), state.order, strict=True) if op >= 0]
            assert held == judge(graph, left)[1]
    after, _ = judge(graph, prune(problem, order, budget))
    assert after.peak_bytes <= budget
    assert after.seconds <= before.seconds


@rule(400, max_ops=14)
def test_dropping_single_values_fits(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    budget = some_budget(graph, order, rng)
    found = drop_single(problem, order, budget)
    assert found is None or judge(graph, found)[0].peak_bytes <= budget


@rule(150, max_ops=8)
def test_the_search_of_states_fits_and_costs_what_it_says(graph: Graph, rng: random.Random) -> None:
    problem = flatten(graph)
    budget = some_budget(graph, range(problem.n), rng)
    found = search_states(problem, budget)
    if found.order is not None:
        trace, _ = judge(graph, found.order)
        assert trace.peak_bytes <= budget
        assert trace.seconds == pytest.approx(graph.seconds + found.bound)
    space, bits = _Space(problem, budget), rng.getrandbits(len(graph.values))
    assert space.weight(bits) == sum(graph.values[v].size_bytes for v in _indices(bits))


@rule(300)
def test_a_schedule_that_fits_is_a_point_of_the_master(graph: Graph, rng: random.Random) -> None:
    if rng.random() < 0.5:  # values are then not numbered as they are made
        graph = permuted(graph, random_order(freedom(graph), rng))
    order = without_unread(graph, with_repeats(graph, rng))
    cuts = sorted(rng.sample(range(len(graph.ops)), rng.randint(1, len(graph.ops))))
    bursts = [(op, t) for t in cuts for op in range(t + 1) if rng.random() < 0.5]
    assert not misses(graph, judge(graph, order)[0].peak_bytes, order, cuts, bursts)


@rule(40, max_ops=8)
def test_no_master_is_above_a_schedule_that_fits(graph: Graph, rng: random.Random) -> None:
    problem, order = flatten(graph), with_repeats(graph, rng)
    trace, _ = judge(graph, order)
    cuts = sorted(rng.sample(range(problem.n), rng.randint(1, problem.n)))
    bursts = [(op, t) for t in cuts for op in range(t + 1) if rng.random() < 0.5]
    found = solve_master(problem, trace.peak_bytes, cuts, bursts=bursts, near=order)
    assert found.bound <= trace.seconds - graph.seconds + 1e-6


@rule(25, max_ops=6)
def test_the_program_of_checkmate_fits(graph: Graph, rng: random.Random) -> None:
    budget = some_budget(graph, range(len(graph.ops)), rng)
    program = build(graph, max(budget, graph.resident_bytes + 1), passes=rng.randint(1, 2))
    program.problem.solve(pulp.HiGHS(msg=False, threads=1))
    if program.problem.sol_status == pulp.LpSolutionOptimal:
        trace, _ = judge(graph, program.order())
        assert trace.peak_bytes <= max(budget, graph.resident_bytes + 1) * (1 + 1e-5)
        assert trace.seconds == pytest.approx(pulp.value(program.problem.objective), abs=1e-5)


@rule(20)
def test_plain_orders_are_plain_schedules(graph: Graph, rng: random.Random) -> None:
    del rng
    assert schedule_from_order(graph, range(len(graph.ops))) == plain_schedule(graph)
