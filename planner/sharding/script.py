"""A sharded plan as a training script for ``torchrun``: all of the plan, by torch's own means.

Knows what such a script must do in which order. Knows nothing of what a plan decides: the script
loads the plan and applies it.
"""

from __future__ import annotations

from pathlib import Path

from graphs.optimizer import OptimizerError, named_optimizer
from planner.sharding.configuration import Strategy
from planner.sharding.plan import ShardedPlan
from planner.sharding.report import chosen
from planner.units import format_both

_TEMPLATE = '''"""Train a model as {plan} says, on {world} devices.

    {chosen}
    peak {peak} of {budget} on each device

Start it on every node with

    {start} MODEL [STEPS]

MODEL is path.py:function or package.module:function; it returns (model, inputs) with the inputs of
one micro-batch: {micro_batch} samples. Replace ``batches`` by a real loader.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import planner
from planner.spec import load_example

PLAN = Path(__file__).resolve().parent / {plan_path!r}
MESH, NAMES = {mesh}
ACCUMULATION = {accumulation}


def batches(inputs):
    """Yield inputs of micro-batches, another one on every rank."""
    while True:
        yield inputs


def loss_of(output):
    return output if isinstance(output, torch.Tensor) else output.loss


def train(model, inputs, steps):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, MESH, mesh_dim_names=NAMES)
    model = planner.load(PLAN).apply(model.to(device).train(), mesh=mesh)
    {optimizer}
    loader = batches(inputs)
    for step in range(steps):
        for micro in range(ACCUMULATION):
            inputs = next(loader){sync}
            loss = loss_of(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
            (loss / ACCUMULATION).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {{step}}: loss {{loss.item():.6f}}", flush=True)


def main():
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        example = load_example(sys.argv[1])
        train(example.model, example.inputs, int(sys.argv[2]) if len(sys.argv) > 2 else 10)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''


def fsdp2(plan: ShardedPlan, plan_path: str) -> str:
    """Write the script; it finds its plan at ``plan_path``, seen from where the script lies."""
    c, cluster = plan.configuration, plan.cluster
    start = f"torchrun --nproc-per-node {cluster.devices_per_node}"
    if cluster.nodes > 1:
        start += f" --nnodes {cluster.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500"
    return _TEMPLATE.format(
        plan=Path(plan_path).name,
        plan_path=plan_path,
        world=c.world_size,
        chosen=chosen(plan),
        peak=format_both(plan.peak_bytes),
        budget=format_both(plan.budget_bytes),
        start=f"{start} SCRIPT",
        micro_batch=c.micro_batch,
        accumulation=c.accumulation,
        mesh=_mesh(plan),
        optimizer=_optimizer(plan),
        sync=_SYNC if c.strategy is not Strategy.FSDP and c.accumulation > 1 else "",
    )


_SYNC = """
            model.require_backward_grad_sync = micro == ACCUMULATION - 1"""


def _mesh(plan: ShardedPlan) -> str:
    c = plan.configuration
    if c.strategy is Strategy.FSDP and c.replicas > 1:
        return f'({c.replicas}, {c.shard_ranks}), ("replicate", "shard")'
    return f'({c.world_size},), ("{"shard" if c.strategy is Strategy.FSDP else "replicate"}",)'


def _optimizer(plan: ShardedPlan) -> str:
    """Write the optimizer whose state the plan counts; its learning rate is the user's."""
    name = plan.step.optimizer or "adamw"
    try:
        made, options = named_optimizer(name)
    except OptimizerError:  # a class of the user's
        return f"optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)  # the plan's: {name}"
    options = dict(options)
    if hasattr(made, "func"):  # a class with keywords
        made, options = made.func, made.keywords | options
    kind = f"torch.optim.{made.__name__}"
    words = "".join(f", {key}={value!r}" for key, value in {"lr": 1e-4, **options}.items())
    if plan.configuration.strategy is Strategy.ZERO1:
        return (
            "from torch.distributed.optim import ZeroRedundancyOptimizer\n\n"
            f"    optimizer = ZeroRedundancyOptimizer(model.parameters(), {kind}{words})"
        )
    return f"optimizer = {kind}(model.parameters(){words})"
