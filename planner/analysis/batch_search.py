"""The last batch for which something holds, found with few captures.

It is predicted on the line through two captures and checked on a capture, at that batch and the
next: everything reported was captured. That what does not fit stops fitting for good as the batch
grows is assumed, not proved. Knows nothing of models or of how a batch is captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.allocator_budget import runs, solve_within
from planner.graphs import Graph, Phase, plain_schedule, simulate
from planner.graphs.hardware.host_tier import HostTier
from planner.graphs.scaling import on_the_line, same_shape
from planner.host_budget import MovedSolution, solve_within_host
from planner.host_states import WithStates, parts_of, quickest, shares
from planner.loss_chunks import AUTO
from planner.plan.states import StatesOnHost
from planner.request import Request
from planner.solvers import Solution
from planner.solvers.bounds.parametric import quick_bound
from planner.solvers.bounds.with_host import may_take_with_host
from planner.solvers.given_order import STOPPED
from planner.solvers.model.host_problem import HostProblem

if TYPE_CHECKING:
    from planner.graphs.capture.training_step import Captured

MOST = 1 << 20
"""No larger batch is looked at; a model this small has no need of a plan."""
FIRST = (2, 4)
"""The batches captured first, to draw a line through."""


@dataclass(frozen=True)
class Solved:
    """A solution, and the step that it is of: one with some states of its optimizer on the host."""

    solution: Solution
    graph: Graph
    states: StatesOnHost | None = None
    remarks: tuple[str, ...] = ()


class Batches:
    """Captures and solutions by batch size, each made once.

    A batch has the variants of its step among which a plan may choose: something holds for it if it
    does for one of them. Extra time is counted from the first.
    """

    def __init__(
        self,
        capture: Callable[[int], Sequence[Captured]],
        budget_bytes: int,
        allowed: float | None,
        request: Request,
    ) -> None:
        self.capture, self.budget_bytes, self.allowed = capture, budget_bytes, allowed
        self.request = request
        self.captured: dict[int, Sequence[Captured]] = {}
        self.plain: dict[Graph, Graph] = {}
        self.solved: dict[Graph, Solved] = {}
        self.offered: dict[Graph, list[WithStates]] = {}
        self.left_seconds = request.limits.seconds

    def graphs(self, batch: int) -> list[Graph]:
        """Capture a batch, unless it was; return the graphs of its variants."""
        if batch not in self.captured:
            self.captured[batch] = self.capture(batch)
        return self._of_one([variant.graph for variant in self.captured[batch]])

    def predicted(self, batch: int) -> list[Graph]:
        """Return the graphs on the lines through the two nearest captures, if they can be drawn."""
        near = sorted(self.captured, key=lambda n: (abs(n - batch), n))[:2]
        if batch in self.captured or len(near) < 2:
            return self.graphs(batch)
        one, other = ({v.rewrite: v.graph for v in self.captured[n]} for n in near)
        if list(one) != list(other) or not all(same_shape(one[k], other[k]) for k in one):
            return self.graphs(batch)
        along = (batch - near[0]) / (near[1] - near[0])
        return self._of_one([on_the_line(one[k], other[k], along) for k in one])

    def _of_one(self, graphs: list[Graph]) -> list[Graph]:
        self.plain |= dict.fromkeys(graphs, graphs[0])
        return graphs

    def allowed_seconds(self, graph: Graph) -> float:
        """Return the most extra time of a step beside what its variant takes more than the first.

        Less than nothing is allowed to what takes longer with every op run once.
        """
        plain = self.plain[graph]
        forward = (op.seconds for op in plain.ops if op.phase is Phase.FORWARD)
        allowed = sum(forward) if self.allowed is None else self.allowed * plain.seconds
        return allowed + plain.seconds - graph.seconds

    def best(self, batch: int) -> tuple[Captured, Solved]:
        """Return the quickest variant of a batch whose plan was found, and its solution."""
        variants = (v for v in self.captured[batch] if self.fits(v.graph))
        found = [(v, self.solve(v.graph)) for v in variants]
        return min(found, key=lambda pair: self._seconds(pair[1]))

    def choices(self, graph: Graph, host: HostTier) -> list[WithStates]:
        """Return the step with every share of its optimizer's states on the host, if they may."""
        if graph not in self.offered:
            of_any, *_ = next(iter(self.captured.values()))
            parts = parts_of(of_any, self.request) if host.states else ()
            some = shares(graph, host, parts) if parts else [WithStates(graph, host)]
            self.offered[graph] = list(some)
        return self.offered[graph]

    def solve(self, graph: Graph) -> Solved:
        """Solve a graph, unless it was; a batch takes half of the seconds left at most."""
        if graph not in self.solved:
            budget, host, start = self.budget_bytes, self.request.host, time.perf_counter()
            seconds = self.left_seconds / 2 / max(map(len, self.captured.values()))
            limits = replace(self.request.limits, seconds=seconds)
            request = replace(self.request, limits=limits)
            if host is None:
                found = solve_within(graph, budget, request, thorough=False)
                self.solved[graph] = Solved(found, graph)
            else:
                self.solved[graph] = self._solved_with(graph, host, request)
            self.left_seconds = max(0.0, self.left_seconds - (time.perf_counter() - start))
        return self.solved[graph]

    def _solved_with(self, graph: Graph, host: HostTier, request: Request) -> Solved:
        def solve(choice: WithStates, asked: Request) -> MovedSolution:
            return solve_within_host(
                choice.graph, self.budget_bytes, asked, choice.host, thorough=False
            )

        offered = self.choices(graph, host)
        if len(offered) == 1:
            return Solved(solve(offered[0], request).solution, graph)
        chosen = quickest(offered, request, solve)
        states, remarks = chosen.choice.states, chosen.moved.remarks
        return Solved(chosen.moved.solution, chosen.choice.graph, states, remarks)

    @property
    def stopped(self) -> bool:
        """Whether the limit in seconds cut a solution off."""
        return any(STOPPED in found.solution.message for found in self.solved.values())

    def fits(self, graph: Graph) -> bool:
        """Tell whether a plan was found that fits and costs no more than allowed."""
        if not self.may_fit(graph):
            return False
        found = self.solve(graph)
        if found.solution.schedule is None:
            return False
        return self._seconds(found) - graph.seconds <= self.allowed_seconds(graph)

    def _seconds(self, found: Solved) -> float:
        schedule = found.solution.schedule
        assert schedule is not None, "a plan was found"
        rates = {} if self.request.host is None else self.request.host.rates
        return simulate(found.graph, schedule, link_bytes_per_second=rates).seconds

    def fits_plain(self, graph: Graph) -> bool:
        """Tell whether the step fits when every op runs once; as it is, if a plan may choose."""
        if self.request.loss_chunks == AUTO and self.plain[graph] is not graph:
            return False
        return runs(graph, plain_schedule(graph), self.budget_bytes, self.request)

    def is_possible(self, graph: Graph) -> bool:
        """Tell whether it is not proved that every plan costs more than allowed, or none fits."""
        if not self.may_fit(graph):
            return False
        extra = self.solve(graph).solution.bound_seconds - graph.seconds
        return extra <= self.allowed_seconds(graph)

    def may_fit(self, graph: Graph) -> bool:
        """Tell whether the quickest of the bounds leaves it open."""
        allowed, host = self.allowed_seconds(graph), self.request.host
        if allowed < 0:
            return False
        if host is not None:
            return any(
                may_take_with_host(HostProblem(step.graph, self.budget_bytes, step.host), left)
                for step in self.choices(graph, host)
                if (left := allowed - (step.graph.seconds - graph.seconds)) >= 0
            )
        return quick_bound(graph, self.budget_bytes) - graph.seconds <= allowed

    def largest(self, holds: Callable[[Graph], bool]) -> int:
        """Return the last batch for which something holds, 0 if it holds for none.

        It was captured, and so was the next one, for which it does not hold.
        """
        low, high = 0, MOST
        for batch in FIRST:
            self.graphs(batch)
        for batch in sorted(self.captured, reverse=True):
            if any(map(holds, self.graphs(batch))):
                low = batch
                break
            high = batch
        while high - low > 1:
            guess = self._guess(holds, low, high)
            if any(map(holds, self.graphs(guess))):
                low = guess
            else:
                high = guess
        return low

    def _guess(self, holds: Callable[[Graph], bool], low: int, high: int) -> int:
        """Return the last batch in between for which it holds by prediction, or the first.

        Looks upwards from the low end while the high end is far, else downwards from the high end.
        """
        best, limit, reach = low, high, 1
        if high == MOST:
            while best + reach < limit and any(map(holds, self.predicted(best + reach))):
                best, reach = best + reach, 2 * reach
            limit = min(limit, best + reach)
        else:
            while limit - reach > best and not any(map(holds, self.predicted(limit - reach))):
                limit, reach = limit - reach, 2 * reach
            best = max(best, limit - reach)
        while limit - best > 1:
            middle = (best + limit) // 2
            if any(map(holds, self.predicted(middle))):
                best = middle
            else:
                limit = middle
        return max(best, low + 1)
