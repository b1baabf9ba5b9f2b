"""A loss in chunks, predicted and measured: ``python -m benchmarks.loss_chunks [--engine NAME]``.

For GPT-2 and a model like Llama's, small but with their vocabularies whole: the least budget known
to work in 1, 2, 4, 8 chunks and where the plan chooses; then the plans at three budgets, run. Peaks
are of the CPU allocator's records beside what is held all along, predicted and measured; times are
those of a step, beside a plain step of the model. Gradients are compared with the model's own.
In the compiled engine the least budgets are those that its compiler says it keeps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import planner
from benchmarks.record import record, show
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.loss_chunks import AUTO_CHUNKS, names
from planner.request import OP_BY_OP, request_of
from planner.running.engines import ENGINES, engine_of
from planner.solvers import Limits, minimum_budget
from planner.step_variants import captured_step

SEQUENCE, BATCH = 128, 4
COUNTS: tuple[int | str, ...] = (1, 2, 4, 8, "auto")
SHARES = (0.0, 0.35, 0.8)
"""Where the budgets lie between the least that works in chunks and what the plain step needs."""
RUNS = 3


@dataclass(frozen=True)
class Least:
    """The least budget known to work, beside what is held all along, and what proves a floor."""

    model: str
    chunks: str
    least_bytes: int
    floor_bytes: int


@dataclass(frozen=True)
class Row:
    """A plan that was run; ``budget_bytes`` and peaks are beside what is held all along.

    ``slower_fraction`` is beside a plain step of the model, ``error`` the largest relative distance
    of a gradient to that of the model.
    """

    model: str
    chunks: str
    budget_bytes: int
    rewrite: str
    predicted_bytes: int
    measured_bytes: int
    predicted_slower_fraction: float
    slower_fraction: float
    error: float


class LossAlone(nn.Module):
    """A model of transformers that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one call."""
        loss: Tensor = self.model(input_ids=input_ids, labels=labels).loss
        return loss


def gpt2() -> nn.Module:
    """Return a narrow GPT-2 with its vocabulary."""
    config = transformers.GPT2Config(
        n_layer=2, n_embd=128, n_head=4, n_positions=SEQUENCE, use_cache=False,
        loss_type="ForCausalLMLoss", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return LossAlone(transformers.GPT2LMHeadModel(config))


def llama() -> nn.Module:
    """Return a narrow Llama with a head of its own and a vocabulary of 64,000."""
    config = transformers.LlamaConfig(
        vocab_size=64_000, hidden_size=128, intermediate_size=344, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=SEQUENCE,
        use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    return LossAlone(transformers.LlamaForCausalLM(config))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "gpt2": (gpt2, 50_257),
    "llama": (llama, 64_000),
}


def least(name: str, model: nn.Module, said: dict[str, Any]) -> list[Least]:
    """Find the least budgets of a model.

    Args:
        name: of the model.
        model: that is planned.
        said: of the step.
    """
    request = request_of(model, said)
    whole, least_of = captured_step(request), engine_of(request.engine).least
    assert whole.variant is not None, "steps on one device have variants"
    held = sum(whole.graph.values[v].size_bytes for v in whole.graph.resident)
    rows: list[Least] = []
    for chunks in (1, *AUTO_CHUNKS):
        variants = [whole] if chunks == 1 else [whole.variant(n) for n in names(chunks, "keep")]
        for variant in variants:
            found = minimum_budget(variant.graph, Limits(seconds=5))
            least_bytes = least_of(variant, request) if least_of else found.least_bytes
            label = "1" if chunks == 1 else " ".join(variant.rewrite.split()[1:])
            rows.append(Least(name, label, least_bytes - held, found.floor_bytes - held))
    return rows


def planned(
    name: str,
    model: nn.Module,
    said: dict[str, Any],
    budgets: list[int],
    *,
    option: str = "loss_chunks",
    counts: Sequence[int | str] = COUNTS,
) -> list[Row]:
    """Plan a model in each number of chunks within each budget, and run the plans.

    Args:
        name: of the model.
        model: that is planned and run.
        said: of the step.
        budgets: in bytes.
        option: what is in chunks.
        counts: in how many.
    """
    inputs = said["inputs"]
    plain = measured(model, inputs)
    plain_seconds = planner.fit(model, "1TB", **said).plain_seconds
    rows: list[Row] = []
    for budget in budgets:
        for chunks in counts:
            try:
                plan = planner.fit(model, budget, **{**said, option: chunks})
            except planner.InfeasibleBudget:
                continue
            held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)
            run = measured(plan.apply(model), inputs)
            rows.append(
                Row(
                    name,
                    str(chunks),
                    budget - held,
                    plan.rewrite,
                    plan.peak_bytes - held,
                    run.peak_bytes,
                    plan.seconds / plain_seconds - 1,
                    run.seconds / plain.seconds - 1,
                    distance(plain.gradients, run.gradients),
                )
            )
    return rows


@dataclass(frozen=True)
class Run:
    """What a step held beside what is held all along, its time, and its gradients."""

    peak_bytes: int
    seconds: float
    gradients: list[Tensor]


def measured(model: nn.Module, inputs: dict[str, Tensor]) -> Run:
    """Run a step of a model that returns its loss, several times.

    Args:
        model: plain or planned.
        inputs: of a call.
    """

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).backward()

    step()
    seconds: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    peak = measure_peak(step, inputs["input_ids"].device).peak_bytes
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return Run(peak, min(seconds), gradients)


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest relative distance of two lists of tensors.

    Args:
        one: the tensors that others are compared with.
        other: as many.
    """
    pairs = zip(one, other, strict=True)
    return max(float((a - b).norm() / a.norm()) for a, b in pairs if a.norm() > 0)


def main() -> None:
    """Run every model, print two tables and write two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--engine", default=OP_BY_OP, choices=sorted(ENGINES))
    asked = parser.parse_args()
    found: list[Least] = []
    rows: list[Row] = []
    for name in asked.models:
        make, vocabulary = MODELS[name]
        torch.manual_seed(0)
        model = make().train()
        ids = torch.randint(0, vocabulary, (BATCH, SEQUENCE))
        said: dict[str, Any] = {
            "inputs": {"input_ids": ids, "labels": ids},
            "optimizer": None,
            "progress": "off",
            "limits": Limits(seconds=5),
            "engine": asked.engine,
        }
        here = least(name, model, said)
        plan = planner.fit(model, "1TB", **said)
        held = sum(plan.graph.values[v].size_bytes for v in plan.graph.resident)
        low, high = held + min(row.least_bytes for row in here), plan.plain_peak_bytes
        found += here
        rows += planned(name, model, said, [int(low + s * (high - low)) + 1 for s in SHARES])
    show("The least budget known to work", found)
    show("Plans, run", rows)
    ending = "" if asked.engine == OP_BY_OP else f"_{asked.engine}"
    print(record(f"loss_chunks_least{ending}", found))
    print(record(f"loss_chunks{ending}", rows))


if __name__ == "__main__":
    main()
