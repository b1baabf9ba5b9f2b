"""A sharded plan as a DeepSpeed JSON and as an accelerate YAML, and what these cannot say.

Knows the fields that those libraries read and how far a plan can be told in them. Knows nothing of
files. Neither library is needed to write for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from planner.byte_sizes import format_bytes
from planner.plan.configuration import Strategy
from planner.plan.sharded import ShardedPlan, UnitKind

NOTES_KEY = "_remat_planner"
"""DeepSpeed ignores keys that it does not know at the top of a file, and refuses them below."""


def deepspeed(plan: ShardedPlan) -> str:
    """Write the configuration that ``deepspeed.initialize`` takes.

    Buckets are one unit: the plan's own gathers and reductions are as large. The optimizer is left
    to the script, as in a plan.
    """
    c = plan.configuration
    config: dict[str, Any] = {
        NOTES_KEY: {"notes": list(deepspeed_notes(plan))},
        "train_batch_size": c.global_batch,
        "train_micro_batch_size_per_gpu": c.micro_batch,
        "gradient_accumulation_steps": c.accumulation,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": _half(plan)},
        "zero_optimization": _zero(plan),
    }
    if c.offload:
        config["zero_force_ds_cpu_optimizer"] = False
    return json.dumps(config, indent=2) + "\n"


def _zero(plan: ShardedPlan) -> dict[str, Any]:
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


def deepspeed_stage(plan: ShardedPlan) -> int:
    """Return the stage that holds no more than the plan: 3 where units differ or groups exist."""
    if plan.configuration.strategy is not Strategy.FSDP:
        return int(plan.stage)
    return 2 if plan.stage == "2" and plan.configuration.replicas == 1 else 3


def deepspeed_notes(plan: ShardedPlan) -> Iterator[str]:
    """Say what the file leaves out or does otherwise."""
    c, stage = plan.configuration, deepspeed_stage(plan)
    yield from _recomputation_notes(
        plan,
        "nothing in this file does that: DeepSpeed's activation_checkpointing block acts only in "
        "models that call deepspeed.checkpointing",
    )
    yield from _mixed_notes(plan, f"DeepSpeed has one stage for all, here {stage}")
    if c.replicas > 1 and stage == 3:
        yield (
            f"{c.replicas} replicas, each sharded over {c.shard_ranks} ranks: DeepSpeed dropped "
            "that (MiCS); nearest is hpZ, which shards states over all ranks and keeps a second "
            f"copy of the weights in groups of {c.shard_ranks}"
        )
    if _half(plan):
        yield (
            "DeepSpeed's bf16 keeps float32 copies of weights, and of gradients, beside bfloat16 "
            "ones; the plan counts what torch holds"
        )
    yield (
        "peak and times were planned for torch's own sharding; DeepSpeed's buckets and buffers "
        "differ, so leave it some room"
    )


def accelerate(plan: ShardedPlan) -> str:
    """Write the configuration that ``accelerate launch --config_file`` takes."""
    c, on_cpu = plan.configuration, plan.cluster.device.name == "cpu"
    kinds = {Strategy.DDP: "MULTI_CPU" if on_cpu else "MULTI_GPU", Strategy.FSDP: "FSDP"}
    fields: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kinds.get(c.strategy, "DEEPSPEED"),
        "downcast_bf16": False,
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16" if c.precision == "bfloat16" else "no",
        "num_machines": plan.cluster.nodes,
        "num_processes": c.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": on_cpu,
    }
    if c.strategy is Strategy.ZERO1:
        fields["deepspeed_config"] = {
            "gradient_accumulation_steps": c.accumulation,
            "zero3_init_flag": False,
            "zero_stage": 1,
        }
    if c.strategy is Strategy.FSDP:
        fields["fsdp_config"] = _fsdp(plan)
    if c.strategy is Strategy.FSDP and c.replicas > 1:
        fields["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": c.replicas,
            "parallelism_config_dp_shard_size": c.shard_ranks,
        }
    notes = "".join(f"# - {note}\n" for note in accelerate_notes(plan))
    return (
        f"# written by planner export; what accelerate does otherwise than the plan:\n{notes}"
        + ("".join(_yaml(fields)))
    )


def _fsdp(plan: ShardedPlan) -> dict[str, Any]:
    return {
        "fsdp_activation_checkpointing": bool(_recomputing(plan)),
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": plan.configuration.offload,
        "fsdp_reshard_after_forward": plan.stage != "2",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_transformer_layer_cls_to_wrap": ",".join(dict.fromkeys(map(_class, plan.kinds))),
        "fsdp_version": 2,
    }


def accelerate_notes(plan: ShardedPlan) -> Iterator[str]:
    """Say what the file leaves out or does otherwise."""
    c = plan.configuration
    sharded = c.strategy is Strategy.FSDP
    yield from _recomputation_notes(
        plan,
        "accelerate has one switch, on here, that recomputes all of every unit: more time"
        if sharded
        else "nothing in this file does that",
    )
    if sharded and plan.cluster.device.name == "cpu":
        yield "accelerate shards on accelerators only: on a CPU it runs one process, or plain DDP"
    yield from _mixed_notes(plan, "accelerate has one switch, here every unit gathers again")
    if c.strategy is Strategy.ZERO1:
        yield "accelerate shards optimizer state by DeepSpeed's stage 1, which must be installed"
    if c.accumulation > 1:
        yield (
            f"create Accelerator(gradient_accumulation_steps={c.accumulation}) and batches of "
            f"{c.micro_batch} in the script"
        )
    elif c.micro_batch > 1:
        yield f"batches of {c.micro_batch} a process are for the script to make"
    if sharded and c.precision == "bfloat16":
        yield (
            "accelerate also reduces gradients in bfloat16, the plan in float32: pass "
            "FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="
            "MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))"
        )


def _recomputation_notes(plan: ShardedPlan, instead: str) -> Iterator[str]:
    if units := _recomputing(plan):
        yield (
            f"the plan recomputes ops chosen one by one in {units} of {len(plan.units)} units; "
            f"{instead}. With nothing recomputed one rank would hold "
            f"{format_bytes(plan.step.baseline_peak_bytes)}, the budget is "
            f"{format_bytes(plan.budget_bytes)}; the format fsdp2 is a script that does follow "
            "the plan"
        )


def _mixed_notes(plan: ShardedPlan, instead: str) -> Iterator[str]:
    if plan.stage == "2/3":
        yield (
            f"the plan keeps the gathered weight of {plan.kept} of {len(plan.units)} units until "
            f"backward; {instead}"
        )


def _recomputing(plan: ShardedPlan) -> int:
    """Return how many units run an op again."""
    return sum(len(u.schedule.order) > len(plan.kinds[u.kind].graph.ops) for u in plan.units)


def _half(plan: ShardedPlan) -> bool:
    """Tell whether compute is in bfloat16, by policy or because the model is."""
    stored = {dtype for kind in plan.kinds for _, _, dtype, _ in _parameters(kind)}
    return plan.configuration.precision == "bfloat16" or stored == {"bfloat16"}


def _parameters(kind: UnitKind) -> list[Any]:
    return list(kind.signature.get("parameters", ()))


def _elements(kind: UnitKind) -> int:
    return sum(math.prod(shape) for _, shape, _, _ in _parameters(kind))


def _vector(kind: UnitKind) -> int:
    """Return the size of the largest bias or norm, which is not worth a gather."""
    return max((math.prod(s) for _, s, _, _ in _parameters(kind) if len(s) < 2), default=0)


def _class(kind: UnitKind) -> str:
    return str(kind.signature["model"]).rpartition(".")[2]


def _yaml(fields: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Lay out nested scalars; texts are quoted, so that "no" stays one."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _yaml(value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}\n"
