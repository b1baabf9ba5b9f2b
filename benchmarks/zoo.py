"""Plan, patch and run every model of the zoo at three budgets: ``python -m benchmarks.zoo [NAME]``.

For each: measured peak against the budget and the prediction, whether loss, gradients and buffers
agree with plain training in every bit, estimated overhead and proven gap. Time is measured by
``benchmarks.speed``: here the steps are too few.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import Case, capture_zoo
from benchmarks.models import ZOO
from benchmarks.record import record, show
from planner import Plan
from planner.verification.difference import compare_tensors
from planner.verification.verify import Run, conclude, run_alone

FRACTIONS = (0.1, 1 / 3, 2 / 3)  # of the way from the least budget to what recomputes nothing
TOLERANCE = 0.02


@dataclass(frozen=True)
class Row:
    """One model at one budget. ``baseline_error`` is the prediction's for plain training."""

    model: str
    ops: int
    plain_bytes: int
    baseline_error_fraction: float
    least_bytes: int
    budget_bytes: int
    measured_bytes: int
    high_water_bytes: int
    error_fraction: float
    fits: bool
    identical: bool
    loss_difference: float
    gradient_difference: float
    plain_difference: float
    buffer_difference: float
    overhead_fraction: float
    gap_fraction: float
    capture_seconds: float
    solve_seconds: float


def measure(case: Case) -> Iterator[Row]:
    """Run plain training once and a plan at every budget."""
    baseline, again = run_alone(case.trial(steps=1)), run_alone(case.trial(steps=1))
    unsteady = max(
        compare_tensors(baseline.tensors[kind], again.tensors[kind]).relative
        for kind in ("gradients", "parameters")
    )
    for fraction in FRACTIONS:
        plan = case.plan(case.budget_at(fraction))
        yield _row(case, plan, baseline, run_alone(case.trial(plan, steps=1)), unsteady)


def _row(case: Case, plan: Plan, baseline: Run, patched: Run, unsteady: float) -> Row:
    found = conclude(plan, baseline, patched)
    plain = found.plain.peak_bytes
    return Row(
        model=case.name,
        ops=len(case.graph.ops),
        plain_bytes=plain,
        baseline_error_fraction=(plan.eager_peak_bytes or case.most_bytes) / plain - 1,
        least_bytes=case.least_bytes,
        budget_bytes=plan.budget_bytes,
        measured_bytes=found.planned.peak_bytes,
        high_water_bytes=found.planned.high_water_bytes,
        error_fraction=found.prediction_error,
        fits=found.fits,
        identical=found.identical,
        loss_difference=found.loss.relative,
        gradient_difference=found.gradients.relative,
        plain_difference=unsteady,
        buffer_difference=found.buffers.relative,
        overhead_fraction=plan.overhead,
        gap_fraction=plan.gap,
        capture_seconds=case.capture_seconds,
        solve_seconds=plan.solve_seconds,
    )


def main() -> None:
    """Measure the models named, or all; exit with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", help=", ".join(ZOO))
    names = parser.parse_args().models or list(ZOO)
    rows: list[Row] = []
    for name in names:
        rows += measure(capture_zoo(name))
        show(name, rows[-len(FRACTIONS) :])
    show("zoo", rows)
    print(record("zoo", rows))
    over = [row for row in rows if not row.fits]
    wrong = [row for row in rows if abs(row.error_fraction) > TOLERANCE]
    differ = [row for row in rows if not row.identical]
    unsteady = [row for row in differ if row.plain_difference]
    print(
        f"{len(rows)} cases: {len(over)} over budget, {len(wrong)} predicted worse than "
        f"{TOLERANCE:.0%}, {len(differ)} not bit-identical ({len(unsteady)} of them where two "
        "plain runs differ, too)"
    )
    sys.exit(1 if over or wrong else 0)


if __name__ == "__main__":
    main()
