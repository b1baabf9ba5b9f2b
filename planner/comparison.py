"""Several solvers on one graph and one budget, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Unpack

from planner.byte_sizes import format_both
from planner.compared import EAGER, Comparison, MethodResult
from planner.errors import BadRequest, InfeasibleBudget
from planner.graphs import Graph, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.host_budget import MovedSolution
from planner.host_states import WithStates, choices, quickest
from planner.planning import plan_captured
from planner.progress import Progress, silent
from planner.request import DEFAULT_LIMITS, OP_BY_OP, Request, checked_method, requested, takes
from planner.solvers import SOLVERS, Limits, Solution, Status, solve
from planner.solvers.baselines.moved_by_hand import BY_HAND, admitted
from planner.solvers.baselines.pareto_marks import RUN_BY_TORCH
from planner.solvers.offload import solve_with_host
from planner.step_options import VariantOptions
from planner.step_variants import captured_step, captured_variant, variant_of

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.training_step import Captured

OURS = "offload"
WITH_HOST = (OURS, *BY_HAND)
"""What moves values, where ``offload=`` says that they may: what ``fit`` then does, and what people
do without a plan."""


@takes(VariantOptions)
def compare(
    model: nn.Module | Request,
    budget: str | float,
    *,
    methods: Sequence[str] | None = None,
    engines: Sequence[str] = (),
    **said: Unpack[VariantOptions],
) -> Comparison:
    """Capture a training step once and plan it by several methods, and in other engines.

    Args:
        model: any ``nn.Module``, or a ``Request``.
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        methods: names of ``solvers.SOLVERS``, and with ``offload=`` of ``WITH_HOST``; all of them
            by default.
        engines: whose plans are set beside, ``engine`` among them: with "inductor" also what it
            does by default, with every repeated block checkpointed, and under torch's
            ``activation_memory_budget``, at each tenth that differs.
        said: what else is to be said of the step: see ``Request``.

    Raises:
        BadBudget, BadRequest, UnknownMethod, UnknownEngine, UnknownDevice, CaptureError: as
            ``fit`` does.
    """
    with requested(model, said, VariantOptions) as asked:
        methods = _checked(methods, asked.host)
        budget_bytes = asked.budget_bytes(budget)
        beside = dict.fromkeys(name for name in (*engines, asked.engine) if name != OP_BY_OP)
        request = replace(asked, engine=OP_BY_OP)
        captured = captured_variant(request)
        # first what may be refused, such as a step that a compiler does not take whole
        inside = [replace(request, engine=name) for name in beside]
        steps = [(other, captured_step(other)) for other in inside]
        others = [
            row
            for other, step in steps
            for row in _in_engine(step, captured.rewrite, other, budget_bytes)
        ]
        found = compare_graph(
            captured.graph,
            budget_bytes,
            methods,
            limits=request.limits,
            tell=request.tell,
            eager=captured.eager,
            host=request.host,
            ours=partial(_ours, captured, budget_bytes, request),
        )
    rows = tuple(sorted((*found.rows, *others), key=_cheapest))
    return replace(found, rows=rows, rewrite=captured.rewrite)


def _ours(captured: Captured, budget_bytes: int, request: Request) -> MethodResult:
    """Return the row of what ``fit`` does where values may move, states of the optimizer, too."""
    start, host = time.perf_counter(), request.host
    assert host is not None, "values may move"
    if not host.states:
        return _moving_row(captured.graph, budget_bytes, OURS, request.limits, host)

    def solve(choice: WithStates, asked: Request) -> MovedSolution:
        found = solve_with_host(choice.graph, budget_bytes, choice.host, limits=asked.limits)
        return MovedSolution(found.solution)

    chosen = quickest(list(choices(captured, request)), request, solve)
    return _result(chosen.choice.graph, OURS, chosen.moved.solution, start, chosen.choice.host)


def _in_engine(
    captured: Captured, rewrite: str, request: Request, budget_bytes: int
) -> Iterator[MethodResult]:
    """Yield the plan of a compiled engine, and what that engine does without one: of the step as
    it is.
    """
    from planner.running.engines import engine_of  # torch: only where something is captured

    start = time.perf_counter()
    try:
        plan = plan_captured(variant_of(captured, rewrite), request, budget_bytes)
    except InfeasibleBudget as error:
        yield _unfit(f"{request.method} in {request.engine}", request.engine, str(error), start)
    else:
        yield MethodResult(
            f"{request.method} in {request.engine}",
            plan.status,
            plan.peak_bytes,
            plan.seconds,
            plan.bound_seconds,
            time.perf_counter() - start,
            "",
            footing=request.engine,
        )
    ways = engine_of(request.engine).own_ways
    for way in ways(captured) if ways is not None else ():
        if way.peak_bytes is None or way.peak_bytes > budget_bytes:
            needs = way.why or f"needs {format_both(way.peak_bytes or 0)}"
            yield _unfit(way.name, request.engine, needs, time.perf_counter())
            continue
        status = Status.FEASIBLE
        row = MethodResult(way.name, status, way.peak_bytes, way.seconds, 0.0, 0.0, "")
        yield replace(row, footing=request.engine)


def _unfit(method: str, engine: str, why: str, start: float) -> MethodResult:
    spent = time.perf_counter() - start
    row = MethodResult(method, Status.INFEASIBLE, None, None, 0.0, spent, why)
    return replace(row, footing=engine)


def _cheapest(row: MethodResult) -> tuple[float, str]:
    return math.inf if row.seconds is None else row.seconds, row.method


def compare_graph(
    graph: Graph,
    budget_bytes: int,
    methods: Sequence[str] | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    tell: Progress = silent,
    eager: Graph | None = None,
    host: HostTier | None = None,
    ours: Callable[[], MethodResult] | None = None,
) -> Comparison:
    """Plan a captured step by several methods.

    Args:
        graph: the step.
        budget_bytes: the budget.
        methods: names of ``solvers.SOLVERS``, and with a host of ``WITH_HOST``; all of them by
            default.
        limits: for each method.
        tell: called with a sentence when a method begins.
        eager: the step as torch runs it itself, for methods that people use there; without it
            they are judged as plans.
        host: where values may go. What is proved of schedules that move nothing then does not
            count as proved.
        ours: makes the row of ``OURS``; by default it is planned for this very graph.

    Raises:
        UnknownMethod: no solver has one of the names.
        BadRequest: one of them moves values, and there is no host.
    """
    plain = simulate(graph, plain_schedule(graph))
    rows = []
    for method in _checked(methods, host):
        tell(f"solving {len(graph.ops):,} ops by {method}")
        by_torch = eager is not None and (method in RUN_BY_TORCH or method in BY_HAND)
        run = eager if eager is not None and by_torch else graph
        if method == OURS and ours is not None:
            row = ours()
        elif host is not None and method in WITH_HOST:
            row = _moving_row(run, budget_bytes, method, limits, host)
        else:
            row = _row(run, budget_bytes, method, limits)
            row = row if host is None else replace(row, bound_seconds=plain.seconds)
        rows.append(replace(row, footing=EAGER, bound_seconds=plain.seconds) if by_torch else row)
    rows.sort(key=_cheapest)
    held = None if eager is None else simulate(eager, plain_schedule(eager)).peak_bytes
    return Comparison(budget_bytes, plain.peak_bytes, plain.seconds, tuple(rows), held)


def _checked(methods: Sequence[str] | None, host: HostTier | None) -> Sequence[str]:
    if methods is None:
        return sorted(SOLVERS) + (list(WITH_HOST) if host is not None else [])
    if host is None and (moving := [m for m in methods if m in WITH_HOST]):
        raise BadRequest(f"{moving[0]} moves values to the host: say offload=, too")
    named = (m if m in WITH_HOST else checked_method(m) for m in methods)
    return list(dict.fromkeys(named))  # old names are others' now


def _moving_row(
    graph: Graph, budget_bytes: int, method: str, limits: Limits, host: HostTier
) -> MethodResult:
    """Return the row of a method that moves values."""
    start = time.perf_counter()
    if method == OURS:
        found = solve_with_host(graph, budget_bytes, host, limits=limits).solution
    else:
        found = _by_hand(graph, budget_bytes, method, host)
    return _result(graph, method, found, start, host)


def _by_hand(graph: Graph, budget_bytes: int, method: str, host: HostTier) -> Solution:
    """Return the quickest schedule of a family that fits."""
    made = admitted(graph, method, host)
    fits = [(seconds, schedule) for peak, seconds, schedule in made if peak <= budget_bytes]
    if fits:
        _, schedule = min(fits, key=lambda found: found[0])
        return Solution(Status.FEASIBLE, schedule, graph.seconds, "")
    message = "has no schedule for this graph, or the host no room for any"
    if made:
        least = min(peak for peak, _, _ in made)
        message = f"the least peak is {least} bytes, over the budget of {budget_bytes}"
    return Solution(Status.UNKNOWN, None, graph.seconds, f"{method}: {message}")


def _row(graph: Graph, budget_bytes: int, method: str, limits: Limits) -> MethodResult:
    start = time.perf_counter()
    solution = solve(graph, budget_bytes, method=method, limits=limits)
    return _result(graph, method, solution, start)


def _result(
    graph: Graph, method: str, solution: Solution, start: float, host: HostTier | None = None
) -> MethodResult:
    spent, trace = time.perf_counter() - start, None
    if solution.schedule is not None:
        rates = {} if host is None else host.rates
        trace = simulate(graph, solution.schedule, link_bytes_per_second=rates)
    return MethodResult(
        method=method,
        status=solution.status,
        peak_bytes=None if trace is None else trace.peak_bytes,
        seconds=None if trace is None else trace.seconds,
        bound_seconds=solution.bound_seconds,
        solve_seconds=spent,
        message=solution.message,
        reordered=solution.reordered,
    )
