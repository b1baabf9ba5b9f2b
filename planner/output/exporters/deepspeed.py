"""A sharded plan as the JSON that ``deepspeed.initialize`` takes, and what it cannot say.

The library is not needed to write for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.graphs.files import write_atomically
from planner.output.exporters.exporter import AnyPlan, Exporter, register_exporter
from planner.output.exporters.shortfalls import (
    chunk_notes,
    computes_in_half,
    host_notes,
    mixed_notes,
    parameters_of,
    recomputation_notes,
    refuse_parted,
    table_notes,
)
from planner.plan.sharded_step_plan import ShardedStepPlan, UnitKind

NOTES_KEY = "_remat_planner"
"""DeepSpeed ignores keys that it does not know at the top of a file, and refuses them below."""


def deepspeed(plan: ShardedStepPlan) -> str:
    """Write the configuration that ``deepspeed.initialize`` takes.

    Buckets are one unit: the plan's own gathers and reductions are as large. The optimizer is left
    to the script, as in a plan.
    """
    refuse_parted(plan, "DeepSpeed")
    c = plan.configuration
    config: dict[str, Any] = {
        NOTES_KEY: {"notes": list(deepspeed_notes(plan))},
        "train_batch_size": c.global_batch,
        "train_micro_batch_size_per_gpu": c.micro_batch,
        "gradient_accumulation_steps": c.accumulation,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": computes_in_half(plan)},
        "zero_optimization": _zero(plan),
    }
    if c.offload:
        config["zero_force_ds_cpu_optimizer"] = False
    return json.dumps(config, indent=2) + "\n"


def _zero(plan: ShardedStepPlan) -> dict[str, Any]:
    c, stage = plan.configuration, deepspeed_stage(plan)
    largest = max(map(_elements, plan.kinds), default=0) or 500_000_000
    zero: dict[str, Any] = {"stage": stage}
    if stage >= 1:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": largest,
            "allgather_bucket_size": largest,
        }
    if stage == 3:
        zero |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": largest,
            "stage3_param_persistence_threshold": max(map(_vector, plan.kinds), default=0) + 1,
            "stage3_max_live_parameters": 3 * largest,
            "stage3_max_reuse_distance": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if c.replicas > 1 and stage == 3:
        zero["zero_hpz_partition_size"] = c.shard_ranks
    if c.offload:
        host = {"device": "cpu", "pin_memory": True}
        zero |= {"offload_optimizer": host} | ({"offload_param": host} if stage == 3 else {})
    return zero


def deepspeed_stage(plan: ShardedStepPlan) -> int:
    """Return the stage that holds no more than the plan: 3 where units differ or groups exist."""
    if plan.stage.mixed or plan.configuration.replicas > 1:
        return plan.configuration.strategy.stages[-1].number
    return plan.stage.least


def deepspeed_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what the file leaves out or does otherwise."""
    c, stage = plan.configuration, deepspeed_stage(plan)
    yield from recomputation_notes(
        plan,
        "nothing in this file does that: DeepSpeed's activation_checkpointing block acts only in "
        "models that call deepspeed.checkpointing",
    )
    yield from table_notes(plan)
    yield from chunk_notes(plan)
    yield from host_notes(plan, "DeepSpeed offloads all states, or a ratio of them by size")
    yield from mixed_notes(plan, f"DeepSpeed has one stage for all, here {stage}")
    if c.replicas > 1 and stage == 3:
        yield (
            f"{c.replicas} replicas, each sharded over {c.shard_ranks} ranks: DeepSpeed dropped "
            "that (MiCS); nearest is hpZ, which shards states over all ranks and keeps a second "
            f"copy of the weights in groups of {c.shard_ranks}"
        )
    if computes_in_half(plan):
        yield (
            "DeepSpeed's bf16 keeps float32 copies of weights, and of gradients, beside bfloat16 "
            "ones; the plan counts what torch holds"
        )
    yield (
        "peak and times were planned for torch's own sharding; DeepSpeed's buckets and buffers "
        "differ, so leave it some room"
    )


def _elements(kind: UnitKind) -> int:
    return sum(math.prod(shape) for _, shape, _, _ in parameters_of(kind))


def _vector(kind: UnitKind) -> int:
    """Return the size of the largest bias or norm, which is not worth a gather."""
    return max((math.prod(s) for _, s, _, _ in parameters_of(kind) if len(s) < 2), default=0)


def _write(plan: AnyPlan, path: Path, plan_path: Path | None) -> tuple[str, ...]:
    del plan_path  # the file stands alone
    assert isinstance(plan, ShardedStepPlan)
    write_atomically(path, deepspeed(plan))
    return tuple(deepspeed_notes(plan))


register_exporter(Exporter("deepspeed", (ShardedStepPlan,), _write, file_name="deepspeed.json"))
