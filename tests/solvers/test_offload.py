"""Keep, recompute, move: never below the brute optimum, no bound above it, no one alone better."""

from __future__ import annotations

import math
import random

import pytest

from planner.graphs import Graph, Op, Phase, Value, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.host_memory import host_layout, movable
from planner.solvers import Limits, Status, floor_bytes, offload, solve
from planner.solvers.baselines.moved_by_hand import BY_HAND, admitted
from planner.solvers.bounds.with_host import bound_with_host
from planner.solvers.given_order import STOPPED
from planner.solvers.model.gaps import gaps_of
from planner.solvers.model.host_problem import HostProblem
from planner.solvers.offload import solve_with_host
from planner.solvers.search.moved_values import RANKS, moving
from planner.solvers.search.transfers import PlacedCopies, placed
from tests.brute_host import brute_host
from tests.strategies import random_graph, transformer, unet

LIMITS = Limits(seconds=4.0)
SEEDS = range(14)
MORE_SEEDS = range(14, 800)


def there_and_back(rng: random.Random, length: int) -> Graph:
    """Return forward ops, then backward ops that read what came before and sometimes their own."""
    ops, values = list[Op](), list[Value]()
    for i in range(length):
        reads = (i - 1,) if i else ()
        ops.append(Op(f"f{i}", "f", reads, (i,), float(rng.randint(1, 4))))
        values.append(Value(f"v{i}", rng.randint(1, 5)))
    for j in range(length):
        i = length - 1 - j
        read = {length + j - 1} if j else {i}
        read |= {i - 1} if i else set()
        read |= {i} if rng.random() < 0.5 else set()
        seconds = float(rng.randint(1, 6))
        op = Op(f"b{i}", "b", tuple(sorted(read)), (length + j,), seconds, phase=Phase.BACKWARD)
        ops.append(op)
        values.append(Value(f"g{i}", rng.randint(1, 3)))
    return Graph(tuple(ops), tuple(values), frozenset({2 * length - 1}))


def drawn(seed: int) -> tuple[HostProblem, str]:
    """Draw a step that does not fit as it is, a budget and a host."""
    for k in range(100):
        rng = random.Random(1000 * seed + k)
        small = rng.random() < 0.7
        made = there_and_back(rng, rng.randint(2, 3)) if small else random_graph(seed, max_ops=6)
        peak = simulate(made, plain_schedule(made)).peak_bytes
        if movable(made) and peak > floor_bytes(made):
            budget = rng.randint(floor_bytes(made), peak - 1)
            tier = HostTier(rng.choice([0.5, 1.0, 2.0]), rng.choice([0.5, 1.0, 2.0]))
            return HostProblem(made, budget, tier), f"seed {seed}, try {k}"
    raise AssertionError("no such step was drawn")


def check(seed: int) -> bool:
    """Compare with the brute optimum; tell whether it is met."""
    problem, named = drawn(seed)
    graph, budget, tier = problem.graph, problem.budget_bytes, problem.tier
    least = brute_host(graph, budget, tier)
    bound = graph.seconds + bound_with_host(problem, 1e3)
    assert bound <= least + 1e-5 * graph.seconds, named
    solution = solve_with_host(graph, budget, tier, limits=LIMITS).solution
    if least == math.inf or solution.schedule is None:
        assert solution.schedule is None or least < math.inf, named
        return least == math.inf
    trace = simulate(graph, solution.schedule, link_bytes_per_second=tier.rates)
    assert trace.peak_bytes <= budget, named
    assert solution.schedule.is_reordered or trace.seconds >= least - 1e-9, named
    assert solution.bound_seconds <= trace.seconds, named
    return trace.seconds <= least + 1e-9


def test_against_brute_force() -> None:
    met = sum(map(check, SEEDS))
    assert met >= 0.95 * len(SEEDS)


@pytest.mark.slow
def test_against_more_brute_force() -> None:
    met = sum(map(check, MORE_SEEDS))
    assert met >= 0.95 * len(MORE_SEEDS)


@pytest.mark.parametrize("seed", range(60))
def test_clocks_without_a_schedule_are_those_of_simulate(seed: int) -> None:
    """And what takes as long as what is known is not returned."""
    rng = random.Random(seed)
    problem, named = drawn(seed)
    order = list(range(problem.flat.n))
    for op, recomputable in enumerate(problem.flat.recomputable):
        if recomputable and rng.random() < 0.5:
            order.insert(rng.randint(order.index(op) + 1, len(order)), op)
    for rank in RANKS:
        chosen = [g for g in gaps_of(problem.flat, order, problem.movable) if rng.random() < 0.7]
        made = placed(problem, order, chosen)
        if isinstance(made, PlacedCopies):
            trace = made.moved(problem).trace
            assert trace.seconds == made.seconds, named
            assert trace.peak_bytes <= problem.budget_bytes, named
        found = moving(problem, order, [rank])
        if found is not None:
            assert moving(problem, order, [rank], below=found.trace.seconds) is None
            assert moving(problem, order, [rank], below=found.trace.seconds + 1e-9) is not None


STEPS = {"transformer": transformer(2), "unet": unet(3)}


@pytest.mark.parametrize("rate", [3.0])
@pytest.mark.parametrize("share", [0.3])
@pytest.mark.parametrize("name", STEPS)
def test_no_worse_than_one_choice_alone(name: str, share: float, rate: float) -> None:
    graph, tier = STEPS[name], HostTier(rate, rate)
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    budget = floor_bytes(graph) + int(share * (peak - floor_bytes(graph)))
    found = solve_with_host(graph, budget, tier, limits=LIMITS)
    alone = solve(graph, budget, limits=LIMITS)
    assert found.solution.schedule is not None
    seconds = simulate(graph, found.solution.schedule, link_bytes_per_second=tier.rates).seconds
    if alone.schedule is not None:
        assert seconds <= simulate(graph, alone.schedule).seconds + 1e-9
    moved = moving(HostProblem(graph, budget, tier), range(len(graph.ops)))
    if moved is not None:
        assert seconds <= moved.trace.seconds + 1e-9
    for family in BY_HAND:
        for peak_bytes, by_hand, _ in admitted(graph, family, tier):
            assert peak_bytes > budget or seconds <= by_hand + 1e-9
    assert found.solution.bound_seconds <= seconds


def test_runs_of_the_plan_that_moves_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no time to plan for larger budgets."""
    monkeypatch.setattr(offload, "HOST_TARGETS", 0)
    monkeypatch.setattr(offload, "HOST_REFINEMENTS", 0)
    graph, tier = STEPS["unet"], HostTier(2.0, 2.0)
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    budget = floor_bytes(graph) + int(0.3 * (peak - floor_bytes(graph)))
    found = solve_with_host(graph, budget, tier, limits=LIMITS)
    assert found.solution.schedule is not None
    seconds = simulate(graph, found.solution.schedule, link_bytes_per_second=tier.rates).seconds
    assert found.recomputing_seconds is not None
    assert found.moving_seconds is not None
    assert seconds < 0.99 * min(found.recomputing_seconds, found.moving_seconds)


def test_a_quick_link_makes_a_step_free_that_recomputes_without() -> None:
    graph, tier = STEPS["transformer"], HostTier(50.0, 50.0)
    budget = floor_bytes(graph) + 120
    found = solve_with_host(graph, budget, tier, limits=LIMITS)
    assert found.solution.schedule is not None
    assert found.solution.schedule.moves
    trace = simulate(graph, found.solution.schedule, link_bytes_per_second=tier.rates)
    alone = solve(graph, budget, limits=LIMITS).schedule
    assert alone is None or trace.seconds < simulate(graph, alone).seconds


def test_a_budget_that_recomputation_cannot_reach() -> None:
    """An op that may not run twice, and whose value is in the way: it has to go."""
    ops = (
        Op("once", "f", (), (0,), 1.0, recomputable=False),
        Op("large", "f", (), (1,), 4.0),
        Op("small", "f", (1,), (2,), 4.0),
        Op("end", "f", (0, 2), (3,), 1.0),
    )
    sizes = (4, 4, 1, 1)
    graph = Graph(ops, tuple(Value(f"v{i}", size) for i, size in enumerate(sizes)), frozenset({3}))
    assert solve(graph, 6).schedule is None
    found = solve_with_host(graph, 6, HostTier(4.0, 4.0), limits=LIMITS)
    assert found.recomputing_seconds is None
    assert found.solution.schedule is not None
    assert found.solution.schedule.moves
    seconds = simulate(
        graph, found.solution.schedule, link_bytes_per_second={**HostTier(4.0, 4.0).rates}
    ).seconds
    assert seconds == brute_host(graph, 6, HostTier(4.0, 4.0)) == graph.seconds + 2.0


def test_the_limit_of_the_host_is_kept() -> None:
    graph = STEPS["transformer"]
    budget = floor_bytes(graph) + 120
    free = solve_with_host(graph, budget, HostTier(50.0, 50.0), limits=LIMITS).solution
    assert free.schedule is not None
    most = host_layout(graph, free.schedule).size_bytes // 2
    tight = solve_with_host(graph, budget, HostTier(50.0, 50.0, most), limits=LIMITS).solution
    assert tight.schedule is not None
    assert host_layout(graph, tight.schedule).size_bytes <= most


def test_what_fits_is_left_as_it_is() -> None:
    graph = STEPS["unet"]
    peak = simulate(graph, plain_schedule(graph)).peak_bytes
    found = solve_with_host(graph, peak, HostTier(1.0, 1.0), limits=LIMITS).solution
    assert found.status is Status.OPTIMAL
    assert found.schedule == plain_schedule(graph)


def test_an_op_that_cannot_fit_is_proved() -> None:
    graph = STEPS["unet"]
    found = solve_with_host(graph, floor_bytes(graph) - 1, HostTier(1.0, 1.0)).solution
    assert found.status is Status.INFEASIBLE


def test_what_may_not_move() -> None:
    values = tuple(Value(name, 4) for name in ("x", "made", "sum", "state", "out", "gradient"))
    done = Value("done", 0)
    ops = (
        Op("make", "f", (0,), (1,)),
        Op("sum", "f", (1,), (2,)),
        Op("add", "f", (1, 2), (6,)),  # writes into the sum
        Op("rng", "rng_state", (), (3,)),
        Op("out", "f", (2, 6), (4,)),
        Op("tangent", "tangent", (), (5,), phase=Phase.BACKWARD),
        Op("step", "adamw", (5,), (), phase=Phase.OPTIMIZER),
    )
    graph = Graph(ops, (*values, done), frozenset({4}))
    assert movable(graph) == frozenset()


def test_a_search_that_the_limit_cut_says_so() -> None:
    step, tier = transformer(6), HostTier(20.0, 20.0)
    budget = step.resident_bytes + (peak_above(step) * 2) // 5
    cut = solve_with_host(step, budget, tier, limits=Limits(seconds=0.02)).solution
    assert cut.status is not Status.OPTIMAL
    assert STOPPED in cut.message
    plenty = solve_with_host(step, peak_above(step) + step.resident_bytes, tier).solution
    assert plenty.message == ""


def peak_above(graph: Graph) -> int:
    """Return what the plain step holds beyond what is resident."""
    return simulate(graph, plain_schedule(graph)).peak_bytes - graph.resident_bytes
