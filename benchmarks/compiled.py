"""The compiled engine on real architectures: ``python -m benchmarks.compiled [NAMES] [--stubs]``.

For each model three budgets: is the measured peak within it, what was predicted, what does a step
cost beside Inductor's default, are the gradients its own. Beside them Inductor's default, and
PyTorch's ``activation_memory_budget`` at every tenth. With ``--stubs`` fused kernels do nothing, so
that no C++ is compiled: allocations are real, times and gradients are left out.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

import planner
from benchmarks.models import ZOO
from benchmarks.record import record, show
from benchmarks.stubs import stubs
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.running.compiled_model import without_plan
from planner.solvers import Limits
from planner.verification.training_run import scalar_of

NAMES = (
    *("gpt2_dropout", "llama", "bert", "vit", "resnet50"),
    *("unet", "t5", "diffusion_unet", "mixtral"),
)
SHARES = (0.75, 0.5, 0.25)
TENTHS = tuple(i / 10 for i in range(10))
LIMITS = Limits(seconds=20)


@dataclass(frozen=True)
class Row:
    """One model under one budget, or without a plan of ours."""

    model: str
    runs: str
    budget_bytes: int
    predicted_bytes: int
    measured_bytes: int
    kept: bool
    overhead_fraction: float
    gap_fraction: float
    step_seconds: float
    gradient_difference: float
    plan_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Measured:
    """What a warm step of a model holds and takes, and the gradients of a seed."""

    peak_bytes: int
    seconds: float
    compile_seconds: float
    gradients: Mapping[str, Tensor]


def measured(model: nn.Module, inputs: Mapping[str, Tensor], *, timed: bool) -> Measured:
    """Train a model for a few steps without an optimizer.

    Args:
        model: compiled or not.
        inputs: by name.
        timed: whether its kernels are real.
    """

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(**inputs)
        scalar_of(output).backward()  # type: ignore[no-untyped-call]

    start = time.perf_counter()
    step()
    spent = time.perf_counter() - start
    torch.manual_seed(3)
    step()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *inputs.values()))
    peak = fixed + measure_peak(step).peak_bytes
    seconds = median(_seconds(step) for _ in range(5)) if timed else 0.0
    return Measured(peak, seconds, spent, found)


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sets of gradients, over the largest of the second."""
    gaps = [float((one[n] - other[n]).abs().max()) for n in other]
    return max(gaps, default=0.0) / max((float(g.abs().max()) for g in other.values()), default=1.0)


def rows_of(name: str, *, timed: bool) -> list[Row]:
    """Measure one model.

    Args:
        name: of the zoo.
        timed: whether kernels are compiled.
    """
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    torch._dynamo.reset()
    usual = measured(without_plan(model, None), inputs, timed=timed)
    rows = [_row(name, "inductor", usual, usual, timed=timed)]
    for tenth in TENTHS if timed else ():
        torch._dynamo.reset()
        with functorch_config.patch(activation_memory_budget=tenth), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measured(without_plan(model, None), inputs, timed=timed)
        rows.append(_row(name, f"activation_memory_budget {tenth}", found, usual, timed=timed))
    plain = _fit(model, inputs, "1TB")
    fixed = plain.graph.resident_bytes
    for share in SHARES:
        budget = int(fixed + share * (plain.plain_peak_bytes - fixed))
        start = time.perf_counter()
        try:
            plan = _fit(model, inputs, budget)
        except planner.InfeasibleBudget as error:
            plan = _fit(model, inputs, error.least_bytes)
        spent = time.perf_counter() - start
        torch._dynamo.reset()
        found = measured(plan.apply(model), inputs, timed=timed)
        rows.append(_row(name, "ours", found, usual, timed=timed, plan=plan, plan_seconds=spent))
    return rows


def _fit(model: nn.Module, inputs: Mapping[str, Tensor], budget: str | int) -> planner.Plan:
    return planner.fit(
        model,
        budget,
        inputs=dict(inputs),
        optimizer=None,
        engine="inductor",
        limits=LIMITS,
        progress="off",
    )


def _row(
    name: str,
    runs: str,
    found: Measured,
    usual: Measured,
    *,
    timed: bool,
    plan: planner.Plan | None = None,
    plan_seconds: float = 0.0,
) -> Row:
    return Row(
        model=name,
        runs=runs,
        budget_bytes=plan.budget_bytes if plan else 0,
        predicted_bytes=plan.peak_bytes if plan else 0,
        measured_bytes=found.peak_bytes,
        kept=plan is None or found.peak_bytes <= plan.budget_bytes,
        overhead_fraction=plan.overhead if plan else 0.0,
        gap_fraction=plan.gap if plan else 0.0,
        step_seconds=found.seconds,
        gradient_difference=_difference(found.gradients, usual.gradients) if timed else 0.0,
        plan_seconds=plan_seconds,
        compile_seconds=found.compile_seconds,
    )


def main(arguments: list[str]) -> None:
    """Measure the models named, or all, and record the rows."""
    stubbed = "--stubs" in arguments
    names = [a for a in arguments if not a.startswith("--")] or list(NAMES)
    rows: list[Row] = []
    with stubs() if stubbed else nullcontext():
        for name in names:
            rows += rows_of(name, timed=not stubbed)
            show(f"{name}: compiled", rows)
    record("compiled_stubs" if stubbed else "compiled", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
