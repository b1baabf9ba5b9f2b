"""How long planning takes and what it needs: ``python -m benchmarks.speed``.

Three parts. GPT-2 small: capture, solve and patch. Llama 3 70B from fake tensors: time and resident
memory of planning, in a process of its own. Patched models: time of a plan that recomputes nothing
against plain training, and of others against their estimate.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
import transformers as hf
from torch import nn

from benchmarks.cases import Case, capture_case, capture_zoo
from benchmarks.models import Example
from benchmarks.models.example import seeded, tokens
from benchmarks.record import record, show
from planner.verification.verify import conclude, run_alone

RUN = ("gpt2", "resnet50", "unet")
STEPS = 7


@dataclass(frozen=True)
class Planning:
    """How long the parts of planning take."""

    model: str
    ops: int
    budget_bytes: int
    plain_bytes: int
    least_bytes: int
    overhead_fraction: float
    gap_fraction: float
    capture_seconds: float
    least_seconds: float
    solve_seconds: float
    patch_seconds: float
    process_bytes: int


@dataclass(frozen=True)
class Running:
    """Time of patched steps against the estimate."""

    model: str
    budget_bytes: int
    plain_step_seconds: float
    patched_step_seconds: float
    overhead_fraction: float
    estimated_overhead_fraction: float


def gpt2_small() -> Example:
    """Build GPT-2 small at full size: 12 layers, sequence 512."""
    config = hf.GPT2Config(use_cache=False, resid_pdrop=0.1)
    ids = tokens(4, 512, config.vocab_size)
    return seeded(lambda: hf.GPT2LMHeadModel(config)), {"input_ids": ids, "labels": ids}


def llama_70b() -> Example:
    """Build Llama 3 70B on meta, bfloat16, sequence 4096: 141 GB of parameters, none allocated."""
    config = hf.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        use_cache=False,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model: nn.Module = hf.LlamaForCausalLM(config).to(torch.bfloat16).train()
        ids = torch.zeros(1, 4096, dtype=torch.int64)
    return model, {"input_ids": ids, "labels": ids}


def planning_gpt2() -> Planning:
    """Time capture, solve and patch of GPT-2 small within half of what it needs."""
    model, inputs = gpt2_small()
    case = capture_case("gpt2 small", model, inputs)
    return _planning(case, max(case.least_bytes, case.most_bytes // 2), model)


def planning_llama() -> Planning:
    """Time planning Llama 3 70B at its least budget plus a fifth."""
    case = capture_case("llama 3 70b", *llama_70b())
    return _planning(case, case.least_bytes * 6 // 5, None)


def _planning(case: Case, budget_bytes: int, model: nn.Module | None) -> Planning:
    plan = case.plan(budget_bytes)
    start = time.perf_counter()
    if model is not None:
        plan.apply(model)
    return Planning(
        model=case.name,
        ops=len(case.graph.ops),
        plain_bytes=case.most_bytes,
        least_bytes=case.least_bytes,
        budget_bytes=budget_bytes,
        overhead_fraction=plan.overhead,
        gap_fraction=plan.gap,
        capture_seconds=case.capture_seconds,
        least_seconds=case.least.seconds,
        solve_seconds=plan.solve_seconds,
        patch_seconds=time.perf_counter() - start,
        process_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def running(name: str) -> Iterator[Running]:
    """Time plain steps, a plan that recomputes nothing, and plans that do."""
    case = capture_zoo(name, optimizer=None, costs="measured")
    plain = run_alone(case.trial(steps=STEPS))
    for fraction in (1.0, 0.5, 0.0):
        plan = case.plan(case.budget_at(fraction))
        found = conclude(plan, plain, run_alone(case.trial(plan, steps=STEPS)))
        yield Running(
            model=name,
            budget_bytes=plan.budget_bytes,
            plain_step_seconds=found.plain.seconds,
            patched_step_seconds=found.planned.seconds,
            overhead_fraction=found.time_ratio - 1,
            estimated_overhead_fraction=plan.overhead,
        )


def main() -> None:
    """Measure everything; record one CSV for planning and one for running."""
    context = multiprocessing.get_context("spawn")
    plans = []
    for measure in (planning_gpt2, planning_llama):  # alone, so that its memory is its own
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            plans.append(pool.submit(measure).result())
    show("planning", plans)
    print(record("planning", plans))
    steps = [row for name in RUN for row in running(name)]
    show("running", steps)
    print(record("running", steps))


if __name__ == "__main__":
    main()
