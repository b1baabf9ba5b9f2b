"""Our methods, the exact program and PyTorch's partitioner on one graph: ``-m benchmarks.solvers``.

Every schedule is judged by ``simulate`` on the same captured step, at the same costs and budgets.
The exact integer program is asked where it has a chance. PyTorch's partitioner is asked at ten
values of ``activation_memory_budget`` for each of its solvers; at a budget its best schedule that
fits counts. Exit code 1 if any method beats ``auto`` or undercuts its bound.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.cases import Case, capture_case
from benchmarks.models import ZOO, Factory, tiny
from benchmarks.partitioners import SOLVERS as KNAPSACKS
from benchmarks.partitioners import partitioner
from benchmarks.record import record, show
from planner.compared import EAGER, PLANNED
from planner.graphs import schedule_from_order, simulate
from planner.solvers import Limits, solve
from planner.solvers.baselines.pareto_marks import RUN_BY_TORCH, Mark

FRACTIONS = (0.2, 0.5, 0.8)  # of the way from the least budget to what plain training needs
METHODS = (
    "auto", "checkpoint", "blocks_uniform", "chen_greedy", "chen_sqrt", "lp_rounding", "revolve",
)  # fmt: skip
EXACT_OPS = 70  # of the largest graph that the exact program is asked about
LIMITS = Limits(seconds=30)
MODELS: dict[str, Factory] = {
    "perceptron": tiny.perceptron,
    "small_unet": tiny.small_unet,
    **{name: ZOO[name] for name in ("gpt2", "bert", "vit", "mobilenet_v2", "resnet50", "unet")},
}


@dataclass(frozen=True)
class Row:
    """One method at one budget. ``bound_fraction`` is the best that any of the methods proved.

    ``budget_fraction`` is of the way from the least budget to plain training's. Without a
    schedule that fits, the overhead is ``nan``. ``footing`` says who holds it within the budget: a
    plan, or eager mode ("checkpoint"). PyTorch's partitioner makes two graphs that neither runs; it
    is judged as a plan, which holds no more.
    """

    model: str
    ops: int
    budget_fraction: float
    budget_bytes: int
    method: str
    fits: bool
    overhead_fraction: float
    bound_fraction: float
    solve_seconds: float
    footing: str = PLANNED


def measure(name: str) -> list[Row]:
    """Run every method at every budget of one model."""
    model, inputs = MODELS[name]()
    case = capture_case(name, model, inputs, optimizer=None)
    rows = [row for fraction in FRACTIONS for row in _ours(case, fraction)]
    step = partitioner(model, case.captured)
    for knapsack in KNAPSACKS:
        if knapsack == "ilp" and importlib.util.find_spec("scipy") is None:
            print("torch_ilp is left out: PyTorch needs scipy for it", file=sys.stderr)
            continue
        start, marks = time.perf_counter(), []
        for tenth in range(10):
            order = step.order(tenth / 10, knapsack)
            trace = simulate(case.graph, schedule_from_order(case.graph, order))
            marks.append(Mark(trace.peak_bytes, trace.seconds))
        spent = time.perf_counter() - start
        rows += [_theirs(case, f, f"torch_{knapsack}", marks, spent) for f in FRACTIONS]
    return list(_bounded(rows))


def _ours(case: Case, fraction: float) -> Iterator[Row]:
    graph, budget = case.graph, case.budget_at(fraction)
    exact = ("milp",) if len(graph.ops) <= EXACT_OPS else ()
    for method in (*METHODS, *exact):
        start = time.perf_counter()
        eager = case.captured.eager if method in RUN_BY_TORCH else None
        found = solve(eager or graph, budget, method=method, limits=LIMITS)
        seconds = math.nan
        if found.schedule is not None:
            seconds = simulate(eager or graph, found.schedule).seconds
        bound, spent = found.bound_seconds, time.perf_counter() - start
        row = _row(case, fraction, method, seconds, bound=0.0 if eager else bound, spent=spent)
        yield replace(row, footing=EAGER) if eager else row


def _theirs(case: Case, fraction: float, method: str, marks: list[Mark], spent: float) -> Row:
    fitting = [m.seconds for m in marks if m.peak_bytes <= case.budget_at(fraction)]
    seconds = min(fitting, default=math.nan)
    return _row(case, fraction, method, seconds, bound=0.0, spent=spent)


def _row(
    case: Case, fraction: float, method: str, seconds: float, *, bound: float, spent: float
) -> Row:
    plain = case.graph.seconds
    return Row(
        model=case.name,
        ops=len(case.graph.ops),
        budget_fraction=fraction,
        budget_bytes=case.budget_at(fraction),
        method=method,
        fits=not math.isnan(seconds),
        overhead_fraction=seconds / plain - 1,
        bound_fraction=max(0.0, bound / plain - 1),
        solve_seconds=spent,
    )


def _bounded(rows: list[Row]) -> Iterator[Row]:
    """Give every row the best bound of its budget: it holds for the schedules of all methods."""
    for row in rows:
        same = [r for r in rows if r.budget_bytes == row.budget_bytes]
        yield replace(row, bound_fraction=max(r.bound_fraction for r in same))


def defects(rows: list[Row]) -> list[str]:
    """Name what should not be: a method better than ``auto``, or better than what is proved."""
    ours = {(r.model, r.budget_bytes): r for r in rows if r.method == "auto"}
    found = []
    for row in rows:
        best = ours[row.model, row.budget_bytes]
        label = f"{row.model} at {row.budget_fraction:.0%}: {row.method}"
        if row.overhead_fraction < best.overhead_fraction - 1e-6:
            found.append(
                f"{label} beats auto by {best.overhead_fraction - row.overhead_fraction:.4%}"
            )
        if row.overhead_fraction < row.bound_fraction - 1e-6:
            found.append(f"{label} is below the bound")
    return found


def main() -> None:
    """Measure the models named, or all; exit with 1 if one of them shows a defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(MODELS))
    rows: list[Row] = []
    for name in parser.parse_args().models:
        rows += measure(name)
        show(name, [row for row in rows if row.model == name])
    print(record("solvers", rows))
    wrong = defects(rows)
    print(f"{len(rows)} rows; {'; '.join(wrong) or 'auto is never beaten, no bound is undercut'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
