"""The compiled engine on real architectures: ``python -m benchmarks.compiled [NAMES]``.

For each model three budgets: is the measured peak within it, what was predicted, what does a step
cost beside Inductor's default, are the gradients its own. ``--sweep`` sets PyTorch's own
``activation_memory_budget`` beside them, at every tenth that differs, each followed by a plan for
the peak that was measured of it, or for the least budget that works if that is more. ``--beside``
adds eager mode and its kernels under our plans, and both with every repeated block inside
``torch.utils.checkpoint``. With ``--stubs`` fused kernels do nothing, so that no C++ is compiled:
allocations are real, times of steps and gradients are left out.

Peaks are of a warm step, every allocation recorded. Seconds of planning and compiling are the
processor's, those of the C++ compiler included, with an empty cache each time; what Inductor does
once in a process is done before.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import checkpoint

import planner
from benchmarks.models.small import SMALL
from benchmarks.record import record, show
from benchmarks.stubs import stubs
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.request import request_of
from planner.running.compiled_model import without_plan
from planner.running.engines import engine_of
from planner.running.engines.inductor import INDUCTOR
from planner.solvers import Limits
from planner.solvers.baselines.blocks import repeated_blocks
from planner.step_variants import captured_step
from planner.verification.training_run import scalar_of

TENTH = "activation_memory_budget "
SHARES = (0.9, 0.75, 0.6)
"""Of what moves in a step that repeats nothing; or the least budget that works, if that is more."""


@dataclass(frozen=True)
class Budgeted:
    """A step under one budget, or without a plan of ours.

    ``moving_bytes`` is what was measured beyond parameters, buffers and inputs, and
    ``predicted_ratio`` what was predicted of it over that. The ratios of times are to Inductor's
    default.
    """

    model: str
    runs: str
    budget_bytes: int
    predicted_bytes: int
    measured_bytes: int
    moving_bytes: int
    predicted_ratio: float
    kept: bool
    overhead_fraction: float
    gap_fraction: float
    time_ratio: float


@dataclass(frozen=True)
class Row(Budgeted):
    """One model; ``build_ratio`` is of planning and compiling together, nan where no C++ is
    compiled.
    """

    gradient_difference: float
    plan_seconds: float
    compile_seconds: float
    build_ratio: float


@dataclass(frozen=True)
class Measured:
    """What a warm step of a model holds and takes, and the gradients of a seed."""

    peak_bytes: int
    moving_bytes: int
    seconds: float
    compile_seconds: float
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """A model, its batch, and whether kernels are compiled (``real``)."""

    name: str
    model: nn.Module
    inputs: Mapping[str, Tensor]
    real: bool
    limits: Limits

    @property
    def request(self) -> planner.Request:
        """What is asked of the planner, but for the budget."""
        said = {"inputs": dict(self.inputs), "optimizer": None, "engine": INDUCTOR}
        return request_of(self.model, {**said, "limits": self.limits, "progress": "off"})

    def fit(self, budget: str | int) -> planner.Plan:
        """Plan for Inductor."""
        return planner.fit(self.request, budget)

    def measured(self, model: nn.Module) -> Measured:
        """Train a model for a few steps without an optimizer."""

        def step() -> None:
            model.zero_grad(set_to_none=True)
            output = model(**self.inputs)  # held to the end of the step, as in a user's loop
            scalar_of(output).backward()  # type: ignore[no-untyped-call]

        torch._dynamo.reset()
        with fresh_cache() if self.real else nullcontext():
            start = processor_seconds()
            step()
            spent = processor_seconds() - start
            torch.manual_seed(3)
            step()
            found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            model.zero_grad(set_to_none=True)
            moving = measure_peak(step).peak_bytes
            seconds = median(seconds_of(step) for _ in range(9)) if self.real else math.nan
        model.zero_grad(set_to_none=True)
        fixed = (*model.parameters(), *model.buffers(), *self.inputs.values())
        return Measured(sum(t.nbytes for t in fixed) + moving, moving, seconds, spent, found)

    def row(
        self,
        runs: str,
        found: Measured,
        usual: Measured,
        plan: planner.Plan | None = None,
        plan_seconds: float = 0.0,
        *,
        overhead: float = math.nan,
    ) -> Row:
        """Set a run beside Inductor's default; ``overhead`` is estimated where there is no plan."""
        fixed = found.peak_bytes - found.moving_bytes
        predicted = plan.peak_bytes - fixed if plan else math.nan
        built = (plan_seconds + found.compile_seconds) / usual.compile_seconds
        return Row(
            model=self.name,
            runs=runs,
            budget_bytes=plan.budget_bytes if plan else 0,
            predicted_bytes=plan.peak_bytes if plan else 0,
            measured_bytes=found.peak_bytes,
            moving_bytes=found.moving_bytes,
            predicted_ratio=predicted / found.moving_bytes,
            kept=plan is None or found.peak_bytes <= plan.budget_bytes,
            overhead_fraction=plan.overhead if plan else overhead,
            gap_fraction=plan.gap if plan else math.nan,
            time_ratio=found.seconds / usual.seconds,
            gradient_difference=difference(found.gradients, usual.gradients)
            if self.real
            else math.nan,
            plan_seconds=plan_seconds,
            compile_seconds=found.compile_seconds,
            build_ratio=built if self.real else math.nan,
        )


def warm_up() -> None:
    """Compile something first: Inductor looks at the processor, and compiles headers."""
    with fresh_cache():
        loss = torch.compile(lambda x: x.sin().sum())(torch.ones(64, requires_grad=True))
        loss.backward()
    torch._dynamo.reset()


def processor_seconds() -> float:
    """Return the seconds of this process and of those it waited for, such as compilers."""
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in own)


def seconds_of(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sets of gradients, over the largest of the second."""
    gaps = [float((one[n] - other[n]).abs().max()) for n in other]
    return max(gaps, default=0.0) / max((float(g.abs().max()) for g in other.values()), default=1.0)


def rows_of(bench: Bench, *, sweep: bool, beside: bool) -> Iterator[Row]:
    """Measure one model.

    Args:
        bench: the model.
        sweep: whether to set PyTorch's own budget beside.
        beside: whether to set eager mode and checkpointing beside.
    """
    usual = bench.measured(without_plan(bench.model, None))
    yield bench.row("inductor", usual, usual)
    yield from _beside(bench, usual) if beside else ()
    plain = bench.fit("1TB")
    fixed = plain.graph.resident_bytes
    for share in SHARES:
        budget = int(fixed + share * (plain.plain_peak_bytes - fixed))
        plan, spent = _planned(bench, budget)
        found = bench.measured(plan.apply(bench.model))
        yield bench.row("ours", found, usual, plan, spent)
        if beside:
            yield from _op_by_op(bench, plan.budget_bytes, usual)
        if plan.budget_bytes > budget:
            break  # nothing is lower than the least
    yield from _swept(bench, usual) if sweep else ()


def _beside(bench: Bench, usual: Measured) -> Iterator[Row]:
    """Measure eager mode, and both engines with every repeated block checkpointed."""
    yield bench.row("eager", bench.measured(bench.model), usual)
    with checkpointed(bench.model):
        yield bench.row("eager, checkpointed", bench.measured(bench.model), usual)
        found = bench.measured(without_plan(bench.model, None))
    yield bench.row("inductor, checkpointed", found, usual)


def _op_by_op(bench: Bench, budget: int, usual: Measured) -> Iterator[Row]:
    """Measure a plan of eager mode's kernels, if there is one."""
    start = processor_seconds()
    with suppress(planner.InfeasibleBudget):
        plan = planner.fit(replace(bench.request, engine="op_by_op"), budget)
        spent = processor_seconds() - start
        found = bench.measured(plan.apply(bench.model))
        yield bench.row("ours, op by op", found, usual, plan, spent)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Run every repeated block of a model inside ``torch.utils.checkpoint``."""
    names = repeated_blocks(name for name, _ in model.named_modules())
    blocks = [model.get_submodule(name) for name in dict.fromkeys(names.values())]
    for block in blocks:
        vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _swept(bench: Bench, usual: Measured) -> Iterator[Row]:
    """Measure the step under PyTorch's own budget, and a plan for the same peak each time."""
    own_ways = engine_of(INDUCTOR).own_ways
    assert own_ways is not None, "it runs steps without a plan"
    default, *others = own_ways(captured_step(bench.request))
    tenths = (w for w in others if w.name.startswith(TENTH) and w.peak_bytes is not None)
    for way in tenths:
        tenth = float(way.name.removeprefix(TENTH))
        with functorch_config.patch(activation_memory_budget=tenth), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bench.measured(without_plan(bench.model, None))
        yield bench.row(way.name, found, usual, overhead=way.seconds / default.seconds - 1)
        plan, spent = _planned(bench, found.peak_bytes)
        ours = bench.measured(plan.apply(bench.model))
        yield bench.row(f"ours at the peak of {way.name}", ours, usual, plan, spent)


def _planned(bench: Bench, budget: int) -> tuple[planner.Plan, float]:
    """Return a plan within a budget, or the least that works, and the seconds it took."""
    start = processor_seconds()
    try:
        plan = bench.fit(budget)
    except planner.InfeasibleBudget as error:
        start = processor_seconds()
        plan = bench.fit(error.least_bytes)
    return plan, processor_seconds() - start


def main() -> None:
    """Measure the models named, or all; exit with 1 if a budget is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(SMALL))
    parser.add_argument("--stubs", action="store_true", help="no C++ is compiled")
    parser.add_argument(
        "--seconds", type=float, default=20, help="of the solver: more where the machine is busy"
    )
    parser.add_argument("--beside", action="store_true", help="eager mode and checkpointing, too")
    parser.add_argument("--sweep", action="store_true", help="activation_memory_budget as well")
    said = parser.parse_args()
    rows: list[Row] = []
    kernels: AbstractContextManager[None] = stubs() if said.stubs else nullcontext()
    with kernels:
        warm_up()
        for name in said.models:
            limits = Limits(seconds=said.seconds)
            bench = Bench(name, *SMALL[name](), real=not said.stubs, limits=limits)
            for row in rows_of(bench, sweep=said.sweep, beside=said.beside):
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                path = record("compiled_stubs" if said.stubs else "compiled", rows)
    show("compiled", rows)
    print(path)
    broken = [row for row in rows if not row.kept]
    print(f"{len(rows)} runs; {len(broken)} beyond their budget")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
