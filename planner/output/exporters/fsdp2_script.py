"""A sharded plan as a training script for ``torchrun``: all of the plan, by torch's own means.

What the plan decides is not in the script, which loads it and applies it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from planner.byte_sizes import format_both
from planner.errors import BadSpec
from planner.graphs.files import write_atomically
from planner.output.exporters.exporter import AnyPlan, Exporter, register_exporter
from planner.output.exporters.launch import Launch
from planner.output.saved_plans import save
from planner.output.sharded_plan_text import chosen
from planner.plan.sharded_step_plan import ShardedStepPlan

_TEMPLATE = '''"""Train a model as {plan} says, on {world} devices.

    {chosen}
    peak {peak} of {budget} on each device

Start it on every node with

    {start} MODEL [STEPS]

MODEL is path.py:function or package.module:function; it returns (model, inputs), on the CPU. Every
rank trains on these inputs until a real loader of {micro_batch} samples replaces ``batches``.
{alike}"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import planner
from planner.sharding.samples import samples_in, with_samples
from planner.model_argument import load_example

PLAN = Path(__file__).resolve().parent / {plan_path}
MESH, NAMES = {mesh}
MICRO_BATCH, ACCUMULATION = {micro_batch}, {accumulation}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"{styles}


def batches(inputs):
    """Yield inputs of one micro-batch after the other; on each rank they should be others."""
    while True:
        yield with_samples(inputs, samples_in(inputs), MICRO_BATCH)


def on_device(inputs):
    if isinstance(inputs, torch.Tensor):
        return inputs.to(DEVICE)
    if isinstance(inputs, dict):
        return {{name: on_device(value) for name, value in inputs.items()}}
    return tuple(map(on_device, inputs)) if isinstance(inputs, tuple | list) else inputs


def loss_of(model, inputs):
    if isinstance(inputs, dict):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    {result}


def train(model, inputs, steps):
    mesh = init_device_mesh(DEVICE, MESH, mesh_dim_names=NAMES)
    plan = planner.load(PLAN)
    model = plan.apply({model}, mesh=mesh{pass_styles})
    {optimizer}
    loader = batches(inputs)
    for step in range(steps):
        for micro in range(ACCUMULATION):{every}
            {loss}
            (loss / ACCUMULATION).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {{step}}: loss {{loss.item():.6f}}", flush=True)


def main():
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo")
    try:
        example = load_example(sys.argv[1])
        train(example.model, example.inputs, int(sys.argv[2]) if len(sys.argv) > 2 else 10)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''


def fsdp2(plan: ShardedStepPlan, plan_path: str) -> str:
    """Write the script; it finds its plan at ``plan_path``, seen from where the script lies."""
    c, cluster = plan.configuration, plan.cluster
    start = f"torchrun --nproc-per-node {cluster.devices_per_node}"
    if cluster.nodes > 1:
        start += f" --nnodes {cluster.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500"
    launch = c.strategy.part(Launch)
    every = launch.every_micro_step if c.accumulation > 1 else ""
    return _TEMPLATE.format(
        plan=Path(plan_path).name,
        plan_path=json.dumps(Path(plan_path).as_posix()),
        world=c.world_size,
        chosen=chosen(plan),
        peak=format_both(plan.peak_bytes),
        budget=format_both(plan.budget_bytes),
        start=f"{start} SCRIPT",
        micro_batch=c.micro_batch,
        accumulation=c.accumulation,
        mesh=_mesh(plan),
        alike=_ALIKE.format(ranks=c.tensor_ranks) if c.tensor_ranks > 1 else "",
        styles=_STYLES if _needs_styles(plan) else "",
        pass_styles=", tensor_parallel=STYLES" if _needs_styles(plan) else "",
        model=launch.model,
        optimizer=_optimizer(plan),
        every=f"\n            {every}" if every else "",
        result=_MISSING if has_own_loss(plan) else _RESULT,
        loss=_AUTOCAST if c.computes_in == "autocast" else _LOSS,
    )


_ALIKE = """{ranks} neighbouring ranks part the layers between them: they need the same samples.
"""
_STYLES = "\nSTYLES = None  # the tensor_parallel= that planner.fit was given"
_RESULT = "return output if isinstance(output, torch.Tensor) else output.loss"
_MISSING = 'raise NotImplementedError("call here the loss that planner.fit was given")'
_LOSS = "loss = loss_of(model, on_device(next(loader)))"
_AUTOCAST = f"""with torch.autocast(DEVICE, torch.bfloat16):
                {_LOSS}"""


def _mesh(plan: ShardedStepPlan) -> str:
    c = plan.configuration
    names, sizes = (", ".join(map(json.dumps, column)) for column in zip(*c.mesh, strict=True))
    comma = "," if len(c.mesh) == 1 else ""
    return f"({sizes}{comma}), ({names}{comma})"


def _optimizer(plan: ShardedStepPlan) -> str:
    """Write the optimizer whose state the plan counts; its learning rate is the user's."""
    from planner.graphs.capture.optimizer_step import OptimizerError, named_optimizer

    name = plan.step.optimizer or "adamw"
    try:
        made, options = named_optimizer(name)
    except OptimizerError:  # a class of the user's
        return f"optimizer = plan.make_optimizer(model, lr=1e-4)  # the plan counts {name}"
    options = dict(options)
    if isinstance(made, functools.partial):
        options = made.keywords | options
        made = made.func
    words = "".join(f", {key}={value!r}" for key, value in {"lr": 1e-4, **options}.items())
    return f"optimizer = plan.make_optimizer(model, torch.optim.{made.__name__}{words})"


def _needs_styles(plan: ShardedStepPlan) -> bool:
    return plan.configuration.tensor_ranks > 1 and not (plan.tensor and plan.tensor.declared)


def has_own_loss(plan: ShardedStepPlan) -> bool:
    """Tell whether the plan was made with a loss that is not in the model."""
    return bool(plan.step.signature.get("loss"))


def script_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what is left to do in the script."""
    if has_own_loss(plan):
        yield "the loss that planner.fit was given is not in the plan: call it in loss_of"
    if _needs_styles(plan):
        yield "the styles that planner.fit was given are not in the plan: write them into STYLES"
    if plan.configuration.tensor_ranks > 1:
        yield "ranks that part layers between them need the same samples: see to it in the loader"


def _write(plan: AnyPlan, path: Path, plan_path: Path | None) -> tuple[str, ...]:
    assert isinstance(plan, ShardedStepPlan)
    if plan.root is not None and has_own_loss(plan):
        raise BadSpec(
            "the plan computes in chunks the loss that planner.fit was given, which a script does "
            "not have: let the model compute it, or call plan.apply(model, loss=...) in your own"
        )
    if plan_path is None:
        plan_path = path.with_suffix(".plan.json")
        save(plan, plan_path)
    write_atomically(path, fsdp2(plan, os.path.relpath(plan_path, path.resolve().parent)))
    return tuple(script_notes(plan))


register_exporter(Exporter("fsdp2", (ShardedStepPlan,), _write, file_name="train_fsdp2.py"))
