"""What every trick of the solvers earns: ``python -m benchmarks.ablation [--constants]``.

A fixed set of graphs and budgets is solved as it is, then with one trick at a time switched off by
its number in ``solvers/tuning.py``; ``--constants`` doubles and halves every number there instead.
What counts is the plan (extra time in points of the step, positive: worse without), the bound
(positive: weaker without) and the processor's seconds. Effort is counted by the solvers, so that
only the seconds depend on what else runs, unless the limit in seconds cut one of the two solves:
such a row is ``cut``, and says more of the machine than of the trick.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, TypeGuard

from benchmarks.instances import OWN
from benchmarks.record import record, show
from planner.graphs import Graph, read_graph, simulate
from planner.solvers import Limits, minimum_budget, solve, tuning
from planner.solvers.given_order import STOPPED

CASES: tuple[tuple[str, float], ...] = (
    ("gpt2_2_layers", 1.05),
    ("resnet_4_blocks", 1.05),
    ("unet_3_sizes", 1.05),
    ("bert", 1.1),
    ("whisper", 1.2),
    ("unet", 1.2),
    ("llama_8_layers", 1.2),
    ("gpt2_12_layers", 1.2),
)
"""Graphs of ``benchmarks/instances``, and budgets as multiples of the least that is found."""

TRICKS: dict[str, Mapping[str, Any]] = {
    "exact search of states": {"TINY_OPS": 0, "MOST_EXACT_OPS": 0},
    "bursts in masters": {"MOST_NEW_BURSTS": 0},
    "new cuts in masters": {"MOST_NEW_CUTS": 0},
    "rows along paths": {"TIGHT_ROUNDS": 0},
    "integer masters": {"INTEGER_ROUNDS": 0, "INTEGER_OPS": 0},
    "plans for a part of the budget": {"CLOSE_AIMS": (), "AIM_ROUNDS": 0},
    "least bytes of a last run": {"LAST_RUN_OPS": 0},
    "waits when evicting": {"PATIENCES": (0.0,)},
    "dropping one value": {"DROP_WORK": 0},
    "local search": {"POLISH_WORK": 0, "BRIEF_POLISH_WORK": 0},
    "stretches alone": {"WORTH_STRETCHES_GAP": math.inf},
    "walking down": {"WORTH_WALKING_GAP": math.inf},
    "baselines as starts": {"WORTH_BASELINES_GAP": math.inf, "WORTH_SWEEPS_GAP": math.inf},
    "another order": {"PROMISING_OVERSHOOT": -math.inf},
}


@dataclass(frozen=True)
class Row:
    """A graph at a budget without one trick: points of the step lost, and seconds beside as-is."""

    without: str
    model: str
    multiple: float
    cost_percent: float
    plan_lost: float
    bound_lost: float
    cpu_seconds: float
    seconds_saved: float
    cut: bool


@dataclass(frozen=True)
class Earned:
    """The sums over all cases; ``beaten`` is how many are worse without, ``cut`` how many the limit
    in seconds cut."""

    trick: str
    plan_points: float
    bound_points: float
    beaten: int
    seconds_saved: float
    cut: int


@dataclass(frozen=True)
class Answer:
    """Percents of the step, the processor's seconds, and whether the limit cut the search."""

    cost: float
    bound: float
    seconds: float
    cut: bool


@contextmanager
def changed(values: Mapping[str, Any]) -> Iterator[None]:
    """Put other numbers wherever the solvers hold those of ``solvers/tuning.py``."""
    unknown = sorted(values.keys() - vars(tuning).keys())
    if unknown:
        raise KeyError(f"{', '.join(unknown)}: no number of solvers/tuning.py has that name")
    holders = [m for n, m in list(sys.modules.items()) if n.startswith("planner.solvers")]
    before = [(m, k, vars(m)[k]) for m in holders for k in values if k in vars(m)]
    functions = [f for m in holders for f in vars(m).values() if _is_of(f, m)]
    defaults = [(f, f.__defaults__, f.__kwdefaults__) for f in functions]
    try:
        for module, name, _ in before:
            setattr(module, name, values[name])
        for function in functions:
            _set_defaults(function, values)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        for function, own, named in defaults:
            function.__defaults__, function.__kwdefaults__ = own, named


def _is_of(value: object, module: ModuleType) -> TypeGuard[FunctionType]:
    return isinstance(value, FunctionType) and value.__module__ == module.__name__


def _set_defaults(function: FunctionType, values: Mapping[str, Any]) -> None:
    """Change what a function takes by default where its source names one of the numbers."""
    if not (function.__defaults__ or function.__kwdefaults__):
        return
    (tree,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(tree, ast.FunctionDef)

    def changed_if_named(written: ast.expr | None, value: Any) -> Any:
        return values.get(written.id, value) if isinstance(written, ast.Name) else value

    own = zip(tree.args.defaults, function.__defaults__ or (), strict=True)
    function.__defaults__ = tuple(changed_if_named(*pair) for pair in own)
    named = function.__kwdefaults__ or {}
    written = {a.arg: d for a, d in zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True)}
    function.__kwdefaults__ = {k: changed_if_named(written[k], v) for k, v in named.items()}


def constants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every number twice: doubled and halved."""
    for name, value in vars(tuning).items():
        if name.isupper() and isinstance(value, int | float):
            for word, other in (("doubled", value * 2), ("halved", value / 2)):
                yield f"{name} {word}", {name: type(value)(other)}


def answer(graph: Graph, budget: int, limits: Limits) -> Answer:
    """Solve once; a plan that is not found costs all of the step once more."""
    start = time.process_time()
    found = solve(graph, budget, method="auto", limits=limits)
    spent = time.process_time() - start
    cost = 2 * graph.seconds
    if found.schedule is not None:
        cost = simulate(graph, found.schedule).seconds
    percent: Callable[[float], float] = lambda s: 100 * (s / graph.seconds - 1)  # noqa: E731
    return Answer(percent(cost), percent(found.bound_seconds), spent, STOPPED in found.message)


def measure(
    tricks: Mapping[str, Mapping[str, Any]], cases: Sequence[tuple[str, float]], limits: Limits
) -> Iterator[Row]:
    """Solve every case as it is, then without each trick."""
    for model, multiple in cases:
        graph = read_graph(OWN / f"{model}.json")
        budget = int(multiple * minimum_budget(graph, limits).least_bytes)
        whole = answer(graph, budget, limits)
        for trick, values in tricks.items():
            with changed(values):
                found = answer(graph, budget, limits)
            yield Row(
                trick, model, multiple, found.cost, found.cost - whole.cost,
                whole.bound - found.bound, found.seconds, whole.seconds - found.seconds,
                whole.cut or found.cut,
            )  # fmt: skip


def earned(rows: Sequence[Row]) -> list[Earned]:
    """Sum up what each trick earns, what earns most first."""
    found = []
    for trick in dict.fromkeys(row.without for row in rows):
        own = [row for row in rows if row.without == trick]
        worse = sum(row.plan_lost > 0.005 or row.bound_lost > 0.005 for row in own)
        found.append(
            Earned(
                trick,
                sum(row.plan_lost for row in own),
                sum(row.bound_lost for row in own),
                worse,
                sum(row.seconds_saved for row in own),
                sum(row.cut for row in own),
            )
        )
    return sorted(found, key=lambda e: -(e.plan_points + e.bound_points))


def main() -> None:
    """Measure all, or the models named; record a CSV and show the sums."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation")
    parser.add_argument("names", metavar="NAME", nargs="*", help="graphs, by default all")
    parser.add_argument("--constants", action="store_true", help="numbers, not tricks")
    parser.add_argument("--seconds", type=float, default=60.0, help="the limit of one solve")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.names or case[0] in options.names]
    tricks = dict(constants()) if options.constants else TRICKS
    rows = list(measure(tricks, cases, Limits(seconds=options.seconds)))
    show("what each earns: points lost and processor's seconds saved without it", earned(rows))
    print(record("ablation-constants" if options.constants else "ablation", rows))


if __name__ == "__main__":
    main()
