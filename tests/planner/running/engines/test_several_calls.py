"""One schedule for several calls, set beside the best of many ways to part the budget."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from planner.graphs import Graph, Kind, Schedule, Value, plain_schedule, simulate
from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture.fused.other_calls import (
    Calls,
    after,
    arriving,
    together,
    waiting_bytes,
    with_others,
    with_waiting,
)
from planner.running.engines.several_calls import leanest, solve_for_calls
from planner.solvers import Limits, solve

EXACT = Limits(seconds=20, gap=0.0)


def block(seed: int, calls: Calls, depth: int = 5, weight: int = 30) -> Graph:
    """Make a chain whose backward reads every value, sizes and times drawn; the other calls have
    weights of that size, too.
    """
    draw = random.Random(seed)
    resident = {
        "x": Value("x", 40, Kind.INPUT),
        "mask": Value("mask", 7, Kind.INPUT),
        "w": Value("w", weight, Kind.PARAMETER),
    }
    names = ["x", *(f"f{i}" for i in range(depth))]
    made = {n: draw.randint(20, 90) for n in names}
    made[names[-1]] = 40
    forward = [
        KernelCall(n, n, (before, "w"), {n: made[n]}, float(draw.randint(1, 5)))
        for before, n in pairwise(names)
    ]
    backward, arrived = [], "tangents_1"
    for n in reversed(names[:-1]):
        gradient = "d_" + n
        kernel = KernelCall(gradient, gradient, (n, arrived), {gradient: made[n]}, 2.0)
        backward.append(kernel)
        arrived = gradient
    backward.append(KernelCall("d_w", "d_w", (arrived,), {"d_w": weight}, 1.0))
    others = (Value("parameters of the other calls", calls.others * weight, Kind.PARAMETER),)
    frame = Frame(resident, {"tangents_1": 40}, others=others, calls=calls)
    return assemble(frame, forward, backward, [names[-1]], ["d_w", "d_x"])


def peak_of(graph: Graph, schedule: Schedule, calls: Calls) -> int:
    return simulate(with_others(graph, schedule, calls), schedule).peak_bytes


def held(graph: Graph, calls: Calls) -> int:
    return peak_of(graph, plain_schedule(graph), calls)


@pytest.mark.parametrize("seed", range(4))
def test_no_way_to_part_the_budget_is_quicker(seed: int) -> None:
    calls = Calls(4)
    graph = block(seed, calls)
    budget = int(0.75 * held(graph, calls))
    found = solve_for_calls(graph, budget, calls, method="auto", limits=EXACT)
    assert found.schedule is not None, seed
    seconds = simulate(graph, found.schedule).seconds
    assert peak_of(graph, found.schedule, calls) <= budget
    assert found.bound_seconds <= seconds
    best, place = math.inf, arriving(graph)
    for waiting in range(0, waiting_bytes(graph, plain_schedule(graph)) + 1, 25):
        for workspace in range(0, budget, 10):  # less is held then while a call waits
            others = with_waiting(graph, waiting, calls)
            op = replace(others.ops[place], workspace_bytes=workspace)
            ops = (*others.ops[:place], op, *others.ops[place + 1 :])
            schedule = solve(replace(others, ops=ops), budget, limits=EXACT).schedule
            if schedule is not None and peak_of(graph, schedule, calls) <= budget:
                best = min(best, simulate(graph, schedule).seconds)
    assert found.bound_seconds <= best, seed
    assert seconds <= best + 1e-9, seed


def test_what_the_others_hold_is_counted_once_where_one_hands_it_to_the_next() -> None:
    calls = Calls(4)
    graph = block(0, calls)
    plain = plain_schedule(graph)
    saved = sum(v.size_bytes for v in graph.values if v.name.startswith("f"))
    assert waiting_bytes(graph, plain) == saved + 7  # the output is the next one's x
    alone = simulate(graph, plain).peak_bytes - 3 * 30  # gradients of the others' parameters
    assert held(graph, calls) == alone + 3 * (saved + 7)


def test_where_gradients_are_more_than_what_waits_the_first_block_binds() -> None:
    calls = Calls(4)
    graph = block(0, calls)
    assert with_waiting(graph, 1, calls) == with_waiting(graph, 30, calls)


def test_calls_of_two_compilations_hold_what_the_larger_of_each_holds() -> None:
    calls = Calls(4)
    one, other = block(0, calls), block(1, calls)
    plain = [plain_schedule(g) for g in (one, other)]
    known = after(with_others(one, plain[0], calls), held(one, calls), calls)
    waiting = max(waiting_bytes(g, s) for g, s in zip((one, other), plain, strict=True))
    bursts = [
        held(g, calls) - 3 * waiting_bytes(g, s) for g, s in zip((one, other), plain, strict=True)
    ]
    assert held(other, known) == 3 * waiting + max(bursts)
    both = with_others(other, plain[1], calls)
    assert together(both, held(other, calls), known) == 3 * waiting + max(bursts)


def test_calls_of_two_compilations_have_the_parameters_of_the_larger() -> None:
    calls, large, small = Calls(4), 500, 30
    one, other = block(0, calls, weight=large), block(0, calls, weight=small)
    plain = plain_schedule(one)
    known = after(with_others(one, plain, calls), held(one, calls), calls)
    mixed = held(other, known)
    assert mixed >= held(one, calls)  # of which as many calls but one may be
    both = with_others(other, plain, calls)
    assert together(both, held(other, calls), known) == mixed
    assert held(one, after(both, held(other, calls), calls)) == held(one, calls)


@pytest.mark.parametrize("seed", range(3))
def test_the_leanest_schedules_hold_less_than_any_budget_that_is_found_to_work(seed: int) -> None:
    calls = Calls(4)
    graph = block(seed, calls)
    least = min(peak_of(graph, s, calls) for s in leanest(graph, calls, EXACT))
    assert least < held(graph, calls)
    found = solve_for_calls(graph, least, calls, method="auto", limits=EXACT)
    assert found.schedule is not None
    assert solve_for_calls(graph, 50, calls, method="auto", limits=EXACT).schedule is None
