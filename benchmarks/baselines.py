"""Against what people do today, at equal measured peak: ``python -m benchmarks.baselines [NAME]``.

Every comparator is run first, in a process of its own. Then the best plan is made for the peak that
was measured of it, run the same way, and set beside it. Other schedules (per block, Chen, LP
rounding) go through the same capture, costs and runtime as the best plan. Each peak is measured as
its method really runs: a comparator's in eager mode or compiled, a schedule's as a plan.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import Case, capture_zoo
from benchmarks.comparators import comparators
from benchmarks.record import record, show
from planner import InfeasibleBudget, Plan
from planner.verification.difference import compare_tensors
from planner.verification.verify import Run, run_alone

MODELS = ("gpt2", "resnet50", "unet")
SCHEDULES = ("blocks", "blocks_uniform", "blocks_greedy", "chen_sqrt", "chen_greedy", "lp_rounding")
FRACTION = 0.3  # of the way from the least budget to what recomputes nothing
STEPS = 3  # timed ones


@dataclass(frozen=True)
class Row:
    """A method beside the best plan at the same peak.

    ``estimated_overhead_fraction`` is ``nan`` for a method that does not run a schedule of ours.
    ``bound_fraction`` is what no schedule of the graph can do without at that peak.
    """

    model: str
    method: str
    peak_bytes: int
    our_peak_bytes: int
    overhead_fraction: float
    our_overhead_fraction: float
    estimated_overhead_fraction: float
    our_estimated_overhead_fraction: float
    bound_fraction: float
    gradient_difference: float
    our_gradient_difference: float
    buffer_difference: float
    our_buffer_difference: float


@dataclass
class Bench:
    """One model: its plain run, and our runs by budget, each made once."""

    case: Case
    plain: Run
    ours: dict[int, tuple[Plan, Run]]

    def best(self, peak_bytes: int) -> tuple[Plan, Run]:
        """Plan and run at a budget; what needs less than that is planned for what it needs."""
        budget = max(min(peak_bytes, self.case.most_bytes), self.case.least_bytes)
        if budget not in self.ours:
            plan = self.case.plan(budget)
            self.ours[budget] = plan, run_alone(self.case.trial(plan, steps=STEPS))
        return self.ours[budget]

    def row(self, method: str, run: Run, schedule: Plan | None = None) -> Row:
        """Set a run beside ours: at its measured peak, or at that of the schedule it ran."""
        plan, own = self.best(schedule.peak_bytes if schedule else run.measured.peak_bytes)
        seconds = self.plain.measured.seconds
        return Row(
            model=self.case.name,
            method=method,
            peak_bytes=run.measured.peak_bytes,
            our_peak_bytes=own.measured.peak_bytes,
            overhead_fraction=run.measured.seconds / seconds - 1,
            our_overhead_fraction=own.measured.seconds / seconds - 1,
            estimated_overhead_fraction=schedule.overhead if schedule else math.nan,
            our_estimated_overhead_fraction=plan.overhead,
            bound_fraction=plan.bound_overhead,
            gradient_difference=self._difference("gradients", run),
            our_gradient_difference=self._difference("gradients", own),
            buffer_difference=self._difference("buffers", run),
            our_buffer_difference=self._difference("buffers", own),
        )

    def _difference(self, kind: str, run: Run) -> float:
        return compare_tensors(self.plain.tensors[kind], run.tensors[kind]).relative


def measure(name: str) -> Iterator[Row]:
    """Run every comparator and every schedule of one model."""
    case = capture_zoo(name, optimizer=None, costs="measured")
    bench = Bench(case, run_alone(case.trial(steps=STEPS)), {})
    yield bench.row("plain", bench.plain)
    for label, factory in comparators(name):
        yield bench.row(label, run_alone(case.trial(factory=factory, steps=STEPS)))
    for method in SCHEDULES:
        try:
            plan = case.plan(case.budget_at(FRACTION), method)
        except InfeasibleBudget:
            continue  # the family has no member this small
        run = run_alone(case.trial(plan, steps=STEPS))
        yield bench.row(f"{method} (schedule)", run, plan)


def worse(row: Row) -> bool:
    """Tell whether the method costs less than our plan at its peak, on the same estimate."""
    return row.estimated_overhead_fraction < row.our_estimated_overhead_fraction - 1e-9


def main() -> None:
    """Measure the models named, or all; exit with 1 if a schedule beats ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=MODELS)
    rows: list[Row] = []
    for name in parser.parse_args().models:
        for row in measure(name):
            rows.append(row)
            print(f"{row.model}: {row.method}", file=sys.stderr)
        show(name, [row for row in rows if row.model == name])
    print(record("baselines", rows))
    lost = [f"{row.model}: {row.method}" for row in rows if worse(row)]
    print(f"{len(rows)} comparisons; ours is beaten by {', '.join(lost) or 'none'}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
