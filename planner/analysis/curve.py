"""The curve of memory against time as a value: points, what is proved between, plans, a table.

Knows how to turn a frontier into answers; how one is found, ``planner.analysis.pareto`` knows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from planner.allocator_budget import allocator_of, needed_bytes, runs
from planner.byte_sizes import (
    format_both,
    format_bytes,
    format_percent,
    format_seconds,
    parse_budget,
)
from planner.graphs import Action, Graph
from planner.host_states import WithStates, told
from planner.output.layout import table, wrap
from planner.plan.advice import infeasible
from planner.plan.chunk_notes import described, in_short
from planner.plan.states import StatesOnHost
from planner.planning import plan_of
from planner.plans import Plan
from planner.request import DEFAULT_LIMITS, Request
from planner.solvers import MinimumBudget, Solution, Status
from planner.solvers.baselines.moved_by_hand import BY_HAND
from planner.solvers.baselines.pareto_marks import RUN_BY_TORCH, Mark
from planner.solvers.frontier import Frontier, Point

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A budget, the best plan known within it, and the least overhead that is proved for it.

    Overheads are extra time as a fraction of the plain step.
    """

    budget_bytes: int
    peak_bytes: int
    seconds: float
    overhead: float
    bound_overhead: float

    @property
    def gap(self) -> float:
        """How much faster a better plan could at most be, as a fraction of the plain step."""
        return max(0.0, self.overhead - self.bound_overhead)


@dataclass(frozen=True, repr=False)
class Curve:
    """The budget-overhead frontier of a captured step, and its proven lower envelope.

    ``rivals`` are the schedules of the usual heuristics, by name, if they were asked for; those of
    ``run_by_torch`` with the peaks of eager mode, the others with those of a plan. Where states of
    the optimizer may wait on the host, ``steps`` are those of the points, in their order; where the
    points are of several variants of the step, so are ``variants``, and ``captured`` is the first.
    """

    captured: Captured = field(hash=False)
    request: Request = field(compare=False, repr=False)
    frontier: Frontier
    rivals: Mapping[str, tuple[Mark, ...]] = field(default_factory=dict, hash=False)
    steps: tuple[WithStates, ...] = ()
    variants: tuple[Captured, ...] = field(default=(), hash=False)
    capture_seconds: float = field(default=0.0, compare=False)
    solve_seconds: float = field(default=0.0, compare=False)

    @property
    def graph(self) -> Graph:
        """The captured step."""
        return self.captured.graph

    def _of(self, point: Point) -> tuple[Graph, StatesOnHost | None]:
        """Return the step that a point is for, and which states it has on the host."""
        if not self.steps:
            return self.captured_at(point).graph, None
        step = self.steps[self.frontier.points.index(point)]
        return step.graph, step.states

    def captured_at(self, point: Point) -> Captured:
        """Return the variant of the step that a point of the frontier is of."""
        if not self.variants:
            return self.captured
        return self.variants[self.frontier.points.index(point)]

    @property
    def rewrites(self) -> tuple[str, ...]:
        """What each point's variant of the step is called."""
        return tuple(self.captured_at(p).rewrite for p in self.frontier.points)

    @property
    def run_by_torch(self) -> tuple[str, ...]:
        """The heuristics whose peaks are eager mode's."""
        known = self.captured.eager is not None
        return tuple(n for n in self.rivals if known and (n in RUN_BY_TORCH or n in BY_HAND))

    @property
    def device(self) -> str:
        """What it is planned for."""
        return self.request.hardware.name

    @property
    def points(self) -> tuple[CurvePoint, ...]:
        """The points from the least budget known to work to what plain training needs."""
        return tuple(
            CurvePoint(
                p.budget_bytes,
                p.peak_bytes,
                p.seconds,
                self.fraction(p.seconds),
                self.fraction(p.bound_seconds),
            )
            for p in self.frontier.points
        )

    @cached_property
    def needed_bytes(self) -> tuple[int, ...] | None:
        """What the device needs for each point through its allocator, ``None`` on a CPU."""
        if allocator_of(self.request.allocator, self.request.hardware) is None:
            return None
        points = self.frontier.points
        return tuple(needed_bytes(self._of(p)[0], p.schedule, self.request) for p in points)

    @cached_property
    def moved_bytes(self) -> tuple[int, ...] | None:
        """What each point moves to the host, states too, ``None`` where nothing may move."""
        if self.request.host is None:
            return None
        found: list[int] = []
        for point in self.frontier.points:
            graph, states = self._of(point)
            found.append(0 if states is None else states.moved_bytes)
            away = (s.index for s in point.schedule.steps if s.action is Action.OFFLOAD)
            found[-1] += sum(graph.values[v].size_bytes for v in away)
        return tuple(found)

    @property
    def least_bytes(self) -> int:
        """The least budget known to work."""
        return self.frontier.points[0].budget_bytes

    @property
    def plain_bytes(self) -> int:
        """What the step needs when nothing is recomputed."""
        return self.frontier.points[-1].budget_bytes

    def overhead(self, budget: str | float) -> float | None:
        """Return the overhead of the best point within a budget, ``None`` below the least."""
        point = self.frontier.at(parse_budget(budget))
        return None if point is None else self.fraction(point.seconds)

    def bound_overhead(self, budget: str | float) -> float:
        """Return the overhead that every plan within a budget has, ``inf`` if none can exist.

        Holds at every budget, not only at those of the points; see ``solvers.frontier``.
        """
        return self.fraction(self.frontier.bound_seconds(parse_budget(budget)))

    def plan(self, budget: str | float) -> Plan:
        """Return the best point within a budget as a plan, without solving again.

        Raises:
            InfeasibleBudget: the budget is below the least known to work.
        """
        budget_bytes = parse_budget(budget)
        within = [p for p in self.frontier.points if p.peak_bytes <= budget_bytes]
        request = self.request
        fits = (
            p for p in reversed(within) if runs(self._of(p)[0], p.schedule, budget_bytes, request)
        )
        point = next(fits, None)
        if point is None:
            first = self.frontier.points[0]
            graph, _ = self._of(first)
            least = MinimumBudget(first.peak_bytes, self.frontier.floor_bytes, first.schedule)
            needed = needed_bytes(graph, first.schedule, request)
            raise infeasible(graph, budget_bytes, least, "", needed, host=request.host)
        bound = min(self.frontier.bound_seconds(budget_bytes), point.seconds)
        close = point.seconds - bound <= DEFAULT_LIMITS.gap * self.graph.seconds
        status = Status.OPTIMAL if close else Status.FEASIBLE
        solution = Solution(status, point.schedule, bound, "a point of the curve")
        graph, states = self._of(point)
        plan = plan_of(
            replace(self.captured_at(point), graph=graph), request, budget_bytes, solution
        )
        plan = replace(plan, capture_seconds=self.capture_seconds, states=states)
        return Plan.of(plan if states is None else plan.with_remark(told(states)))

    def best_rival(self, budget_bytes: int) -> tuple[str, float] | None:
        """Return the heuristic that costs least within a budget, and its overhead."""
        found = [
            (marks[at - 1].seconds, name)
            for name, marks in self.rivals.items()
            if (at := bisect_right([m.peak_bytes for m in marks], budget_bytes))
        ]
        return (min(found)[1], self.fraction(min(found)[0])) if found else None

    def fraction(self, seconds: float) -> float:
        """Return what a step of so many seconds takes more than the plain one, as a fraction."""
        plain = self.frontier.plain_seconds
        return max(0.0, seconds / plain - 1.0) if plain else 0.0

    def __repr__(self) -> str:
        budgets = [point.budget_bytes for point in self.points]
        return (
            f"Curve({self.graph.name or 'a step'}: {len(budgets)} points, "
            f"{format_bytes(min(budgets, default=0))} to {format_bytes(max(budgets, default=0))})"
        )

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        """Lay the points out as a table, the tightest budget first."""
        plain = self.frontier.plain_seconds
        title = (
            f"{self.graph.name or 'The step'}: plain it peaks at {format_both(self.plain_bytes)} "
            f"and takes {format_seconds(plain)}"
        )
        known = f"The least budget known to work is {format_both(self.least_bytes)}; "
        floor = self.frontier.floor_bytes
        known += (
            "it is proved that none works below"
            if floor >= self.least_bytes
            else f"it is proved that none works below {format_bytes(floor)}"
        )
        header = ["budget", "of plain", "overhead", "proven", "gap"]
        rows = [self._cells(p) for p in self.points]
        aligned = "rrrrr"
        if self.needed_bytes is not None:
            aligned, header = aligned + "r", [*header, "device needs"]
            needed = map(format_bytes, self.needed_bytes)
            rows = [(*row, said) for row, said in zip(rows, needed, strict=True)]
        if self.moved_bytes is not None:
            aligned, header = aligned + "r", [*header, "moved"]
            moved = map(format_bytes, self.moved_bytes)
            rows = [(*row, said) for row, said in zip(rows, moved, strict=True)]
        if self.variants:
            aligned, header = aligned + "l", [*header, "loss"]
            rows = [(*row, in_short(name)) for row, name in zip(rows, self.rewrites, strict=True)]
        if self.rivals:
            aligned, header = aligned + "l", [*header, "best heuristic"]
            rows = [(*row, self._rival(p)) for row, p in zip(rows, self.points, strict=True)]
        body = table(aligned, header, rows)
        foot = (
            "Proven: no plan within that budget, or a smaller one, has less overhead. "
            f"Captured in {format_seconds(self.capture_seconds)}, solved in "
            f"{format_seconds(self.solve_seconds)}"
        )
        if names := ", ".join(self.run_by_torch):
            foot += f". Peaks of {names} are eager mode's, those of other heuristics a plan's"
        if self.variants:
            over = in_short(self.captured.rewrite)
            foot += f". Loss: in how many chunks, of which form; overhead is over the step {over}"
        else:
            foot += "".join(f". In this curve {said}" for said in described(self.captured.rewrite))
        if (host := self.request.host) is not None:
            out, back = (format_bytes(int(r)) for r in (host.to_host, host.from_host))
            foot += f". Moved: to the host, at {out}/s there and {back}/s back"
        return "\n".join([title, known, body, wrap(foot, "", "")])

    def _cells(self, point: CurvePoint) -> tuple[str, ...]:
        return (
            format_bytes(point.budget_bytes),
            f"{100 * point.budget_bytes / self.plain_bytes:.0f}%",
            f"+{format_percent(point.overhead)}",
            f"+{format_percent(point.bound_overhead)}",
            format_percent(point.gap),
        )

    def _rival(self, point: CurvePoint) -> str:
        best = self.best_rival(point.budget_bytes)
        return "-" if best is None else f"+{format_percent(best[1])} {best[0]}"

    def to_json(self) -> dict[str, Any]:
        """Return the curve as plain JSON types, for programs."""
        return {
            "rewrite": self.captured.rewrite,
            "plain_bytes": self.plain_bytes,
            "plain_seconds": self.frontier.plain_seconds,
            "least_bytes": self.least_bytes,
            "floor_bytes": self.frontier.floor_bytes,
            "points": [
                {
                    "budget_bytes": p.budget_bytes,
                    "peak_bytes": p.peak_bytes,
                    "needed_bytes": needed,
                    **({} if moved is None else {"moved_bytes": moved}),
                    "seconds": p.seconds,
                    "overhead": p.overhead,
                    "bound_overhead": p.bound_overhead,
                    "gap": p.gap,
                    "rewrite": rewrite,
                }
                for p, needed, moved, rewrite in zip(
                    self.points,
                    self.needed_bytes or [p.peak_bytes for p in self.points],
                    self.moved_bytes or [None] * len(self.points),
                    self.rewrites,
                    strict=True,
                )
            ],
            "bound_lines": [
                {"extra_seconds": line.extra_seconds, "seconds_per_byte": line.slope}
                for line in self.frontier.lines
            ],
            "heuristics": {
                name: [{"peak_bytes": m.peak_bytes, "seconds": m.seconds} for m in marks]
                for name, marks in self.rivals.items()
            },
            "heuristics_in_eager_mode": list(self.run_by_torch),
            "capture_seconds": self.capture_seconds,
            "solve_seconds": self.solve_seconds,
        }
