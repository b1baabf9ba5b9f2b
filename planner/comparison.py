"""Several solvers on one graph and one budget, side by side.

Knows how to run them and how to lay out the rows. Every gap is taken to the best bound any of them
proved, since each bound holds for all; only a reordered plan has to do with those for any order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Unpack

from planner.byte_sizes import (
    format_both,
    format_bytes,
    format_percent,
    format_seconds,
)
from planner.errors import BadRequest, InfeasibleBudget
from planner.graphs import Graph, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.output.layout import table, wrap
from planner.planning import captured_step, plan_captured, refuse_states
from planner.progress import Progress, silent
from planner.request import DEFAULT_LIMITS, Request, checked_method, requested, takes
from planner.solvers import SOLVERS, Limits, Solution, Status, solve
from planner.solvers.baselines.moved_by_hand import BY_HAND, admitted
from planner.solvers.baselines.pareto_marks import RUN_BY_TORCH
from planner.solvers.offload import solve_with_host
from planner.step_options import SingleOptions

if TYPE_CHECKING:
    from torch import nn


OURS = "offload"
WITH_HOST = (OURS, *BY_HAND)
"""What moves values, where ``offload=`` says that they may: what ``fit`` then does, and what people
do without a plan."""

PLANNED, EAGER = "plan", "eager"
"""On which footing a peak is: as a plan holds the step, or as torch does that runs it itself."""
SAME_GRAPH = frozenset((PLANNED, EAGER))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method found. Without a schedule ``peak_bytes`` and ``seconds`` are ``None``.

    ``footing`` says who holds the peak: "plan", "eager", or the name of a compiled engine.
    """

    method: str
    status: Status
    peak_bytes: int | None
    seconds: float | None
    bound_seconds: float
    solve_seconds: float
    message: str
    reordered: bool = False
    footing: str = PLANNED

    @property
    def fits(self) -> bool:
        """Whether the method found a schedule within the budget."""
        return self.peak_bytes is not None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The rows of every method, cheapest schedule first.

    ``eager_peak_bytes`` is what torch itself holds of the plain step, where that is known.
    """

    budget_bytes: int
    plain_peak_bytes: int
    plain_seconds: float
    rows: tuple[MethodResult, ...]
    eager_peak_bytes: int | None = None

    @property
    def bound_seconds(self) -> float:
        """The best bound any method proved: it holds for all schedules that keep the order."""
        return _best_bound([row for row in self.rows if row.footing in SAME_GRAPH])

    def overhead(self, row: MethodResult) -> float | None:
        """Extra time of a row as a fraction of the plain step; a compiled one may take less."""
        if row.seconds is None:
            return None
        if row.footing in SAME_GRAPH or not self.plain_seconds:
            return self._over(row.seconds - self.plain_seconds)
        return row.seconds / self.plain_seconds - 1

    def gap(self, row: MethodResult) -> float | None:
        """Distance of a row from the best bound, as a fraction of the plain step."""
        if row.seconds is None:
            return None
        return self._over(row.seconds - _best_bound(_bounding(self.rows, row)))

    def _over(self, seconds: float) -> float:
        return max(0.0, seconds / self.plain_seconds) if self.plain_seconds else 0.0

    def __repr__(self) -> str:
        return f"Comparison({len(self.rows)} methods within {format_bytes(self.budget_bytes)})"

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        """Lay the rows out as a table under the budget."""
        title = (
            f"Budget {format_both(self.budget_bytes)}; the plain step peaks at "
            f"{format_both(self.plain_peak_bytes)} and takes "
            f"{format_seconds(self.plain_seconds)}"
        )
        if self.eager_peak_bytes is not None:
            title += f"; in eager mode it peaks at {format_bytes(self.eager_peak_bytes)}"
        header = ("method", "fits", "peak", "held by", "overhead", "gap", "solved in", "says")
        rows = [self._cells(row) for row in self.rows]
        proved = self._over(self.bound_seconds - self.plain_seconds)
        foot = f"Proven: at least +{format_percent(proved)} is necessary; gaps are to this bound"
        if names := [row.method for row in self.rows if row.reordered]:
            foot += f"\nReordered, with gaps to bounds for any order: {', '.join(names)}"
        foot += f"\n{self._footing()}"
        why = [wrap(_why(row), "  ", "    ") for row in self.rows if not row.fits]
        return "\n".join([title, table("llrlrrrl", header, rows), foot, *why])

    def _footing(self) -> str:
        eager = [row.method for row in self.rows if row.footing == EAGER]
        if eager:
            said = (
                f"Peaks of {', '.join(eager)} are eager mode's, which runs it without a plan; the "
                "others are a plan's"
            )
        else:
            said = "Peaks are a plan's; run by torch itself, a step usually holds more"
        compiled = sorted({row.footing for row in self.rows} - SAME_GRAPH)
        for engine in compiled:
            said += (
                f"\nHeld by {engine}: what its compiler says it allocates; its overheads are over "
                "the plain step op by op, in estimated time, its gaps to bounds for its own kernels"
            )
        return said

    def _cells(self, row: MethodResult) -> tuple[str, ...]:
        overhead, gap = self.overhead(row), self.gap(row)
        return (
            row.method,
            "yes" if row.fits else "no",
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            row.footing,
            "-" if overhead is None else _signed(overhead),
            "-" if gap is None else format_percent(gap),
            format_seconds(row.solve_seconds),
            row.status.name.lower(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the rows as plain JSON types, for programs."""
        return {
            "budget_bytes": self.budget_bytes,
            "plain_peak_bytes": self.plain_peak_bytes,
            "plain_seconds": self.plain_seconds,
            "eager_peak_bytes": self.eager_peak_bytes,
            "bound_seconds": self.bound_seconds,
            "rows": [
                {
                    "method": row.method,
                    "status": row.status.name,
                    "fits": row.fits,
                    "peak_bytes": row.peak_bytes,
                    "seconds": row.seconds,
                    "overhead": self.overhead(row),
                    "gap": self.gap(row),
                    "solve_seconds": row.solve_seconds,
                    "message": row.message,
                    "reordered": row.reordered,
                    "footing": row.footing,
                }
                for row in self.rows
            ],
        }


def _bounding(rows: Iterable[MethodResult], row: MethodResult) -> list[MethodResult]:
    """Return the rows whose bounds hold for a row: of the same graph, and for its order."""
    compiled = row.footing not in SAME_GRAPH
    same = [r for r in rows if (r.footing == row.footing if compiled else r.footing in SAME_GRAPH)]
    return [r for r in same if r.reordered] if row.reordered else same


def _best_bound(rows: Sequence[MethodResult]) -> float:
    finite = (row.bound_seconds for row in rows if math.isfinite(row.bound_seconds))
    return max(finite, default=0.0)


def _signed(fraction: float) -> str:
    """Write a fraction with its sign.

    >>> _signed(0.25), _signed(-0.1)
    ('+25.00%', '-10.00%')
    """
    return f"{'-' if fraction < 0 else '+'}{format_percent(abs(fraction))}"


def _why(row: MethodResult) -> str:
    said = row.message or row.status.value
    return said if said.startswith(f"{row.method}:") else f"{row.method}: {said}"


@takes(SingleOptions)
def compare(
    model: nn.Module | Request,
    budget: str | float,
    *,
    methods: Sequence[str] | None = None,
    engines: Sequence[str] = (),
    **said: Unpack[SingleOptions],
) -> Comparison:
    """Capture a training step once and plan it by several methods, and in other engines.

    Args:
        model: any ``nn.Module``, or a ``Request``.
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        methods: names of ``solvers.SOLVERS``, and with ``offload=`` of ``WITH_HOST``; all of them
            by default.
        engines: whose plans are set beside: with "inductor" also what it does by default, and
            under torch's ``activation_memory_budget``, at each tenth that differs.
        said: what else is to be said of the step: see ``Request``.

    Raises:
        BadBudget, BadRequest, UnknownMethod, UnknownEngine, UnknownDevice, CaptureError: as
            ``fit`` does.
    """
    with requested(model, said, SingleOptions) as request:
        refuse_states(request, "compare")
        methods = _checked(methods, request.host)
        budget_bytes = request.budget_bytes(budget)
        captured = captured_step(request)
        found = compare_graph(
            captured.graph,
            budget_bytes,
            methods,
            limits=request.limits,
            tell=request.tell,
            eager=captured.eager,
            host=request.host,
        )
        others = [
            row
            for name in engines
            for row in _in_engine(replace(request, engine=name), budget_bytes)
        ]
    return replace(found, rows=tuple(sorted((*found.rows, *others), key=_cheapest)))


def _in_engine(request: Request, budget_bytes: int) -> Iterator[MethodResult]:
    """Yield the plan of a compiled engine, and what that engine does without one."""
    from planner.running.engines import engine_of  # torch: only where something is captured

    captured, start = captured_step(request), time.perf_counter()
    try:
        plan = plan_captured(captured, request, budget_bytes)
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
        if way.peak_bytes > budget_bytes:
            needs = f"needs {format_both(way.peak_bytes)}"
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
        if host is not None and method in WITH_HOST:
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
