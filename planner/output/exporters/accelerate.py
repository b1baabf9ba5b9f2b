"""A sharded plan as the YAML that ``accelerate launch`` takes, and what it cannot say.

The library is not needed to write for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.graphs.files import write_atomically
from planner.output.exporters.exporter import AnyPlan, Exporter, register_exporter
from planner.output.exporters.launch import Launch
from planner.output.exporters.shortfalls import (
    chunk_notes,
    host_notes,
    mixed_notes,
    parameters_of,
    recomputation_notes,
    recomputing,
    refuse_parted,
    table_notes,
)
from planner.plan.sharded_step_plan import ShardedStepPlan, UnitKind


def accelerate(plan: ShardedStepPlan) -> str:
    """Write the configuration that ``accelerate launch --config_file`` takes."""
    refuse_parted(plan, "accelerate")
    c, on_cpu = plan.configuration, plan.cluster.device.name == "cpu"
    kind = _distributed_type(plan)
    fields: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": _ON_CPU.get(kind, kind) if on_cpu else kind,
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
    if kind == "DEEPSPEED":
        fields["deepspeed_config"] = {
            "gradient_accumulation_steps": c.accumulation,
            "zero3_init_flag": False,
            "zero_stage": plan.stage.least,
        }
    if kind == "FSDP":
        fields["fsdp_config"] = _fsdp(plan)
    if kind == "FSDP" and c.replicas > 1:
        fields["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": c.replicas,
            "parallelism_config_dp_shard_size": c.shard_ranks,
        }
    notes = "".join(f"# - {note}\n" for note in accelerate_notes(plan))
    return (
        f"# written by planner export; what accelerate does otherwise than the plan:\n{notes}"
        + ("".join(_yaml(fields)))
    )


_ON_CPU = {"MULTI_GPU": "MULTI_CPU"}


def _distributed_type(plan: ShardedStepPlan) -> str:
    return plan.configuration.strategy.part(Launch).distributed_type


def _fsdp(plan: ShardedStepPlan) -> dict[str, Any]:
    return {
        "fsdp_activation_checkpointing": bool(recomputing(plan)),
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": plan.configuration.offload,
        "fsdp_reshard_after_forward": plan.stage != 2,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_transformer_layer_cls_to_wrap": ",".join(_wrapped_classes(plan)),
        "fsdp_version": 2,
    }


def accelerate_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what the file leaves out or does otherwise."""
    c, kind = plan.configuration, _distributed_type(plan)
    sharded = kind == "FSDP"
    yield from recomputation_notes(
        plan,
        "accelerate has one switch, on here, that recomputes all of every unit: more time"
        if sharded
        else "nothing in this file does that",
    )
    if sharded and plan.cluster.device.name == "cpu":
        yield "accelerate shards on accelerators only: on a CPU it runs one process, or plain DDP"
    yield from table_notes(plan)
    yield from chunk_notes(plan)
    if sharded and (single := _left_with_the_root(plan)):
        yield (
            f"the plan shards {', '.join(single)} as units of their own; accelerate names classes, "
            "and would wrap all layers of theirs: they stay with the root, gathered all step long"
        )
    if sharded and all(map(_is_single, plan.kinds)):
        yield (
            f"accelerate names classes, and wraps every {' and '.join(_wrapped_classes(plan))} of "
            "the model, also those that are no units of the plan"
        )
    yield from host_notes(plan, "accelerate has one switch, here all are")
    yield from mixed_notes(plan, "accelerate has one switch, here every unit gathers again")
    if kind == "DEEPSPEED":
        yield (
            f"accelerate shards optimizer state by DeepSpeed's stage {plan.stage}, which must be "
            "installed"
        )
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


def _wrapped_classes(plan: ShardedStepPlan) -> list[str]:
    """Name the classes of blocks; that of an embedding or a head would wrap every linear layer."""
    blocks = [k for k in plan.kinds if not _is_single(k)] or plan.kinds
    return list(dict.fromkeys(map(_class, blocks)))


def _left_with_the_root(plan: ShardedStepPlan) -> list[str]:
    single = [_is_single(kind) for kind in plan.kinds]
    return [] if all(single) else [unit.path for unit in plan.units if single[unit.kind]]


def _is_single(kind: UnitKind) -> bool:
    """Tell whether a unit is one of torch's layers, of whose class there are likely others."""
    return _is_layer(_class(kind)) and all("." not in name for name, *_ in parameters_of(kind))


def _is_layer(name: str) -> bool:
    from torch import nn

    return hasattr(nn, name)


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


def _write(plan: AnyPlan, path: Path, plan_path: Path | None) -> tuple[str, ...]:
    del plan_path  # the file stands alone
    assert isinstance(plan, ShardedStepPlan)
    write_atomically(path, accelerate(plan))
    return tuple(accelerate_notes(plan))


register_exporter(Exporter("accelerate", (ShardedStepPlan,), _write, file_name="accelerate.yaml"))
