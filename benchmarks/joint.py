"""Sharding and recomputation together, against what people do: ``python -m benchmarks.joint``.

``python -m benchmarks.joint 8B`` does the cases with that in their name alone.

Two models on meta, sequence 4096: Llama 3 8B on 8 A100s of 40 GB, Llama 3 70B on 64 of 80 GB. Each
is planned jointly; then every fixed recipe (a ZeRO stage, and no, selective or full per-block
checkpointing) at its best micro-batch, and stage first, then checkpointing, are priced on the same
assembled graphs. Two CSVs: one row a model, one row a rival.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.record import record, show
from planner.byte_sizes import parse_budget
from planner.graphs.hardware.cluster import cluster
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.request import request_of
from planner.sharding.captures import Captures
from planner.sharding.configurations import configurations
from planner.sharding.fit_sharded import plan_found
from planner.sharding.pricing import Planned, price_recipes
from planner.sharding.recipes import Recipe
from planner.sharding.search import explore
from planner.sharding.space import Space
from planner.sharding.stage_first import stage_first
from planner.sharding.too_full import Full, full
from planner.solvers import Limits


@dataclass(frozen=True)
class Case:
    """A model, the devices it is to be trained on, and the samples of one step."""

    name: str
    build: Callable[[], nn.Module]
    device: str
    world_size: int
    global_batch: int
    sequence: int = 4096
    budget: str = "95%"
    precisions: tuple[str, ...] = ("bfloat16",)


@dataclass(frozen=True)
class Joint:
    """What planning jointly found, and what it took."""

    model: str
    devices: str
    global_batch: int
    budget_bytes: int
    peak_bytes: int
    chosen: str
    stage: str
    kept_units: int
    units: int
    sample_seconds: float
    bound_sample_seconds: float
    gap_fraction: float
    configurations: int
    opened: int
    solved: int
    planning_seconds: float
    processor_seconds: float
    process_bytes: int


@dataclass(frozen=True)
class Rival:
    """A rival's best, and how much longer it takes than the joint plan."""

    model: str
    rival: str
    configuration: str
    fits: bool
    peak_bytes: int
    sample_seconds: float
    longer_fraction: float


def llama(layers: int, hidden: int, inner: int, heads: int) -> nn.Module:
    """Build a Llama 3 on meta, float32 master weights: nothing is allocated."""
    config = hf.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        use_cache=False,
    )
    with torch.device("meta"):
        model: nn.Module = hf.LlamaForCausalLM(config).train()
    return model


CASES = (
    Case("Llama 3 8B", lambda: llama(32, 4096, 14336, 32), "A100-40GB", 8, 64),
    Case("Llama 3 70B", lambda: llama(80, 8192, 28672, 64), "A100-80GB", 64, 256),
)


def inputs_of(case: Case) -> dict[str, Any]:
    """Return one sample on meta."""
    ids = torch.zeros(1, case.sequence, dtype=torch.int64, device="meta")
    return {"input_ids": ids, "labels": ids}


def plan(case: Case) -> tuple[ShardedStepPlan, Joint, Space]:
    """Plan a case, say what it took, and return the space that was searched."""
    start, spent = time.perf_counter(), time.process_time()
    devices = cluster(case.device, case.world_size)
    budget_bytes = parse_budget(case.budget, lambda: devices.device.memory_bytes)
    said = {"inputs": inputs_of(case), "device": case.device, "progress": _tell(start)}
    shop = Captures(request_of(case.build(), said))
    among = configurations(
        case.world_size,
        case.global_batch,
        devices_per_node=devices.devices_per_node,
        precisions=case.precisions,
    )
    space = shop.space(devices, among)
    result = explore(space, budget_bytes, tell=_tell(start))
    found = plan_found(shop, devices, result, budget_bytes)
    row = Joint(
        model=case.name,
        devices=str(found.cluster),
        global_batch=case.global_batch,
        budget_bytes=found.budget_bytes,
        peak_bytes=found.peak_bytes,
        chosen=str(found.configuration),
        stage=str(found.stage),
        kept_units=found.kept,
        units=len(found.units),
        sample_seconds=found.seconds_per_sample,
        bound_sample_seconds=found.bound_seconds_per_sample,
        gap_fraction=found.gap,
        configurations=len(among),
        opened=sum(o.spent is not None for o in result.outcomes),
        solved=sum(o.solved for o in result.outcomes),
        planning_seconds=time.perf_counter() - start,
        processor_seconds=time.process_time() - spent,
        process_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    return found, row, space


def rivals(case: Case, found: ShardedStepPlan, space: Space) -> Iterator[Rival]:
    """Price every fixed recipe, each at its best, and stage first, then checkpointing."""
    for recipe, planned in sorted(best_recipes(space, found.budget_bytes).items(), key=_named):
        yield _rival(case, str(recipe), planned, found)
    usual = stage_first(space, found.budget_bytes, limits=Limits(seconds=20.0))
    name = f"stage first (ZeRO-{usual.stage}), then checkpointing"
    if usual.planned is not None:
        yield _rival(case, name, usual.planned, found)
        return
    yield Rival(
        model=case.name,
        rival=name,
        configuration="none fits",
        fits=False,
        peak_bytes=usual.state_bytes,
        sample_seconds=math.inf,
        longer_fraction=math.inf,
    )


def _named(pair: tuple[Recipe, Planned]) -> tuple[int, str]:
    return pair[0].stage.number, pair[0].checkpoint.name


def best_recipes(space: Space, budget_bytes: int) -> dict[Recipe, Planned]:
    """Return each recipe's fastest use that fits, or else the one that holds least.

    What holds no less than something that cannot fit is not looked at.
    """
    best: dict[Recipe, Planned] = {}
    ruled: list[Full] = []

    def rank(planned: Planned) -> tuple[bool, float]:
        over = planned.peak_bytes > budget_bytes
        return over, planned.peak_bytes if over else planned.seconds

    for c in sorted(space.configurations, key=lambda c: (c.micro_batch, -c.shard_ranks)):
        if any(known.rules_out(c) for known in ruled):
            continue
        step = space.open(c)
        if (too_much := full(step, c, budget_bytes)) is not None:
            ruled.append(too_much)
        for planned in price_recipes(c, step):
            assert planned.recipe is not None
            known = best.get(planned.recipe)
            if known is None or rank(planned) < rank(known):
                best[planned.recipe] = planned
    return best


def _rival(case: Case, name: str, planned: Planned, found: ShardedStepPlan) -> Rival:
    return Rival(
        model=case.name,
        rival=name,
        configuration=str(planned.configuration),
        fits=planned.peak_bytes <= found.budget_bytes,
        peak_bytes=planned.peak_bytes,
        sample_seconds=planned.seconds / case.global_batch,
        longer_fraction=planned.seconds / found.seconds - 1,
    )


def _tell(start: float) -> Callable[[str], None]:
    def tell(sentence: str) -> None:
        print(f"  {time.perf_counter() - start:6.1f} s  {sentence}", file=sys.stderr)

    return tell


def main() -> None:
    """Plan both models, price their rivals, record both tables."""
    rows, others = list[Joint](), list[Rival]()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for case in (case for case in CASES if wanted in case.name):
        found, row, space = plan(case)
        print(found)
        rows.append(row)
        others += rivals(case, found, space)
    show("joint plans", rows)
    show("rivals, each at its best", others)
    suffix = f"-{wanted}" if wanted else ""
    print(record(f"joint{suffix}", rows))
    print(record(f"joint-rivals{suffix}", others))


if __name__ == "__main__":
    main()
