"""Does a planned step compute, hold and refuse what was said?"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
import transformers as hf
from torch import Tensor, nn

import planner
from benchmarks.gpu.models import MODELS, llama, on, peak_of, stepper
from benchmarks.gpu.plans import half_way, held, outside_bytes, reserved
from benchmarks.gpu.rows import Row, row
from planner.graphs.hardware.detect import device_at
from planner.graphs.hardware.reserve import reserve_parts
from planner.verification.difference import compare_tensors

EXPANDABLE = "expandable_segments:True"


def bits(kind: str) -> Iterator[Row]:
    """Compare loss, gradients and the generator's state with those of eager mode."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        plain = trained(model, inputs)
        plan = half_way(model, inputs)
        planned = trained(plan.apply(model), inputs)
        again = compare_tensors(plain, trained(model, inputs)).relative
        found = compare_tensors(plain, planned).relative
        yield row("bits", name, "largest difference", found, again, "eager's own", found <= again)


def trained(
    runs: nn.Module, inputs: dict[str, Tensor], *, of: nn.Module | None = None
) -> dict[str, Tensor]:
    """Return the loss and the gradients of one step, and the next random number, on the CPU.

    Args:
        runs: what is called.
        inputs: that it is called with.
        of: whose parameters' gradients are compared; by default its own.
    """
    model = of or runs
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    loss = runs(**inputs).loss
    loss.backward()
    made = {
        n: p.grad.to("cpu", copy=True) for n, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    drawn = torch.rand(1, device=loss.device)
    return {"loss": loss.detach().cpu(), "next random number": drawn.cpu(), **made}


def memory(kind: str) -> Iterator[Row]:
    """Compare what a step holds, and on a card what its allocator reserves, with the prediction."""
    for name, build in MODELS.items():
        model, inputs = on(kind, build)
        plan = replace(half_way(model, inputs), optimizer=None)
        step = stepper(plan.apply(model), inputs)
        if kind == "cuda":
            torch.cuda.empty_cache()
        step()
        yield held("memory", f"{name}, planned", peak_of(kind, model, inputs, step), plan)
        if kind == "cuda":
            yield from reserved("memory", name, torch.cuda.max_memory_reserved(), plan)


def held_budget(kind: str) -> Iterator[Row]:
    """Train ten steps with no more memory than the budget, in a process of their own."""
    for setting in ("expandable_segments:False", EXPANDABLE):
        for name in MODELS:
            command = [sys.executable, "-m", "benchmarks.gpu", "--ten-steps", name]
            environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": setting}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            said = (done.stdout or done.stderr).strip().splitlines()
            found = said[-1] if said else "nothing said"
            yield row(
                "budget", f"{name}, {setting}", "outcome", found, "ten steps", "equal",
                found == "ten steps",
            )  # fmt: skip


def ten_steps(name: str) -> None:
    """Train within a budget that the driver enforces."""
    model, inputs = on("cuda", MODELS[name])
    plan = half_way(model, inputs)
    planned = plan.apply(model)
    torch.cuda.empty_cache()
    room = plan.budget_bytes - outside_bytes(plan)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    step = stepper(planned, inputs)
    for _ in range(10):
        step()
    print("ten steps")


def workspaces(kind: str) -> Iterator[Row]:
    """Measure what cuBLAS keeps after a step, and what the device has given no tensor."""
    context_part, cublas, *_ = (part.size_bytes or 0 for part in reserve_parts(device_at(kind)))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for build in MODELS.values():
        model, inputs = on(kind, build)
        model(**inputs).loss.backward()
        del model, inputs
    gc.collect()
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_allocated() - before
    yield row("workspaces", "cuBLAS", "bytes", kept, cublas, "at most", kept <= cublas)
    free, total = torch.cuda.mem_get_info()
    taken = total - free - torch.cuda.memory_reserved()
    ok = taken <= context_part
    yield row("workspaces", "context", "bytes", taken, context_part, "at most", ok)


def guards(kind: str) -> Iterator[Row]:
    """Check that another call, and a plan made on meta for this device, are met as they should."""
    model, inputs = on(kind, llama)
    plan = planner.fit(model, "90%", inputs=inputs, progress="off")
    larger = {name: torch.cat([x, x]) for name, x in inputs.items()}
    try:
        plan.apply(model)(**larger)
        found = "ran"
    except planner.PlanMismatch:
        found = "refused"
    yield row("guards", "a larger batch", "outcome", found, "refused", "equal", found == "refused")
    with torch.device("meta"):
        bare = hf.LlamaForCausalLM(model.config).to(torch.bfloat16).train()
    there = {name: torch.empty_like(x, device="meta") for name, x in inputs.items()}
    made = planner.fit(bare, "90%", inputs=there, device=device_at(kind), progress="off")
    made.apply(model)
    same = [op.target for op in made.graph.ops] == [op.target for op in plan.graph.ops]
    found = "the planned graph" if same else "another graph, planned anew"
    yield row("guards", "made on meta", "outcome", found, "the planned graph", "equal", same)
