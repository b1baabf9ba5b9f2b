"""Sharded steps on paper and in processes: ``python -m benchmarks.sharding [RANKS ...]``.

GPT-2 and Llama from transformers under every stage of ZeRO and a mix, with and without
recomputation, in bfloat16, of several micro-steps, and in replicated groups (HSDP): the peak that
one rank's step is predicted to have, and what each rank's allocator recorded over gloo. The budget
of every plan is its own predicted peak, the tightest there is, and the reserve for what gloo's
threads let go of late.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.record import record, show
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.sharded_step_plan import UnitKind
from planner.plan.step_plan import StepPlan
from planner.plan.strategy import Strategy
from planner.plans import ShardedPlan
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.solvers import Status, solve
from planner.verification.ranks import ShardedTrial, run_ranks

VOCABULARY, LENGTH, SAMPLES, LAYERS = 1024, 128, 2, 4
METHODS = {"none": "plain", "full": "recompute_all"}
STAGES = ("0", "1", "2", "3", "2/3")


@dataclass(frozen=True)
class Case:
    """One way to train: the stage, what is recomputed, and what is beside the plain float32 step.

    ``replicas`` are those of HSDP; ``micro_steps`` make one optimizer step.
    """

    stage: str
    recomputed: str
    precision: str = "float32"
    micro_steps: int = 1
    replicas: int = 1

    def configuration(self, ranks: int) -> Configuration:
        """Spread the case over ranks."""
        strategy = {"0": Strategy.DDP, "1": Strategy.ZERO1}.get(self.stage, Strategy.FSDP)
        replicas = ranks if strategy is Strategy.DDP else self.replicas
        return Configuration(
            strategy, ranks // replicas, replicas, SAMPLES, self.micro_steps, self.precision
        )


PLAIN = tuple(Case(stage, name) for stage in STAGES for name in METHODS)
BFLOAT16 = tuple(
    Case(stage, name, "bfloat16")
    for stage, name in (("0", "none"), ("0", "full"), ("2", "none"), ("3", "none"), ("3", "full"))
)
MICRO_STEPS = (
    Case("0", "none", micro_steps=3),
    Case("0", "full", micro_steps=3),
    Case("1", "full", micro_steps=3),
    Case("3", "none", micro_steps=3),
    Case("3", "full", micro_steps=3),
    Case("0", "full", "bfloat16", micro_steps=2),
    Case("3", "full", "bfloat16", micro_steps=2),
)
HYBRID = (
    Case("2", "none", replicas=2),
    Case("3", "none", replicas=2),
    Case("3", "full", replicas=2),
    Case("3", "full", micro_steps=2, replicas=2),
    Case("3", "full", "bfloat16", replicas=2),
)


def cases(ranks: int) -> tuple[Case, ...]:
    """Return what runs on so many ranks: HSDP needs two groups of two."""
    return (*PLAIN, *BFLOAT16, *MICRO_STEPS, *(HYBRID if ranks % 4 == 0 else ()))


@dataclass(frozen=True)
class Row:
    """One plan: what it was said to hold on a rank, and the most that any rank held."""

    model: str
    ranks: int
    stage: str
    recomputed: str
    precision: str
    micro_steps: int
    replicas: int
    predicted_bytes: int
    reserve_bytes: int
    measured_bytes: int
    error_fraction: float
    fits: bool
    predicted_static_bytes: int
    measured_static_bytes: int


def gpt2(rank: int, samples: int = SAMPLES) -> tuple[nn.Module, dict[str, Any]]:
    """Build GPT-2, dropout included."""
    config = hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_layer=LAYERS,
        n_embd=256,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    return hf.GPT2LMHeadModel(config).train(), _batch(rank, samples)


def llama(rank: int, samples: int = SAMPLES) -> tuple[nn.Module, dict[str, Any]]:
    """Build Llama: rotary positions, grouped keys, gated MLP, untied head."""
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return hf.LlamaForCausalLM(config).train(), _batch(rank, samples)


def _batch(rank: int, samples: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": ids}


MODELS: dict[str, Callable[..., tuple[nn.Module, dict[str, Any]]]] = {"gpt2": gpt2, "llama": llama}


@functools.cache
def captures_of(model: str, precision: str) -> ModelCapture:
    """Capture a model's units once."""
    made, inputs = MODELS[model](0)
    return capture_units(made, inputs, device="cpu", precision=precision)


def plan_of(model: str, ranks: int, case: Case) -> ShardedPlan:
    """Plan a case with one method in every unit; the budget is what that is said to need."""
    configuration = case.configuration(ranks)
    captures = captures_of(model, configuration.computes_in)
    step = assemble(captures, configuration, cluster("cpu", ranks))
    method = METHODS[case.recomputed]
    found = [solve(kind.graph, 10**12, method=method).schedule for kind in captures.kinds]
    units = []
    for i, (path, kind) in enumerate(zip(captures.units, captures.kind_of, strict=True)):
        schedule = found[kind]
        assert schedule is not None
        kept = case.stage == "2" or (case.stage == "2/3" and i % 2 == 0)
        units.append(UnitPlan(path, kind, schedule, keep_gathered=kept))
    realized = step.realize_units(units)
    signature = captures.root.signature
    inner = StepPlan(
        step.graph, realized.schedule, 10**12, Status.FEASIBLE, 0.0, method, signature,
        optimizer="adamw",
    )  # fmt: skip
    kinds = tuple(UnitKind(k.graph, k.signature) for k in captures.kinds)
    return ShardedPlan(inner, configuration, step.cluster, realized.units, kinds)


def rows(model: str, ranks: int, chosen: Sequence[Case]) -> Iterator[Row]:
    """Run cases of a model in one set of processes."""
    plans = [plan_of(model, ranks, case) for case in chosen]
    trials = [
        ShardedTrial(
            functools.partial(MODELS[model], samples=SAMPLES * case.micro_steps),
            plan.configuration, plan.units, plan, steps=0, compared=False,
        )
        for case, plan in zip(chosen, plans, strict=True)
    ]  # fmt: skip
    for case, plan, found in zip(chosen, plans, run_ranks(trials), strict=True):
        most = max(rank.peak_bytes for rank in found)
        expected = plan.peak_bytes - plan.reserve_bytes
        yield Row(
            model=model,
            ranks=ranks,
            **asdict(case),
            predicted_bytes=expected,
            reserve_bytes=plan.reserve_bytes,
            measured_bytes=most,
            error_fraction=expected / most - 1,
            fits=most <= plan.peak_bytes,
            predicted_static_bytes=plan.step.graph.resident_bytes - plan.reserve_bytes,
            measured_static_bytes=max(rank.static_bytes for rank in found),
        )


def main() -> None:
    """Run all, print the table and write the CSV."""
    worlds = [int(text) for text in sys.argv[1:]] or [2, 4]
    found = [
        row for ranks in worlds for model in MODELS for row in rows(model, ranks, cases(ranks))
    ]
    show("Sharded steps: predicted and measured peak of one rank", found)
    print(record("sharding", found))


if __name__ == "__main__":
    main()
