"""Two processes over gloo that train a small decoder, plain and planned, and report."""

from __future__ import annotations

import datetime
import functools
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from planner.errors import PlanMismatch
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.sharded_step_plan import UnitKind
from planner.plan.strategy import Strategy
from planner.plans import Plan, ShardedPlan
from planner.sharding.apply_sharded import apply, make_optimizer, wrap
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from planner.solvers import Status, solve
from planner.verification.ranks import precision_context, whole
from tests.planner.sharding.blocks import batch, decoder

LAYERS = 2
DDP = Configuration(Strategy.DDP, 1, 2, micro_batch=2)
ZERO1 = Configuration(Strategy.ZERO1, 2, micro_batch=2)
FSDP = Configuration(Strategy.FSDP, 2, micro_batch=2)
CASES: dict[str, tuple[Configuration, tuple[bool, ...], float]] = {
    "ddp": (DDP, (False, False), 0.0),
    "zero1": (ZERO1, (False, False), 0.0),
    "mixed": (FSDP, (True, False), 0.0),
    "stage 2": (FSDP, (True, True), 0.1),
    "stage 3": (FSDP, (False, False), 0.1),
    "bfloat16": (replace(FSDP, precision="bfloat16"), (False, True), 0.1),
    "autocast": (replace(DDP, precision="bfloat16"), (False, False), 0.1),
    "offload": (replace(FSDP, offload=True), (False, False), 0.1),
    "partly": (replace(FSDP, offload=True, staying=("", "h.1")), (False, False), 0.1),
}
"""Configuration, which weights stay gathered, and the rate of dropout."""


def plan_of(
    captures: ModelCapture,
    configuration: Configuration,
    kept: tuple[bool, ...],
    *,
    method: str = "recompute_all",
) -> ShardedPlan:
    """Return a plan in which every unit follows one solver's schedule with ample memory."""
    step = assemble(captures, configuration, cluster("cpu", configuration.world_size))
    schedules = [solve(kind.graph, 10**12, method=method).schedule for kind in captures.kinds]
    units = []
    for path, kind, keep in zip(captures.units, captures.kind_of, kept, strict=True):
        schedule = schedules[kind]
        assert schedule is not None
        units.append(UnitPlan(path, kind, schedule, keep))
    realized = step.realize_units(units)
    plan = Plan(
        step.graph, realized.schedule, 10**12, Status.FEASIBLE, 0.0, method, captures.root.signature
    )
    kinds = tuple(UnitKind(k.graph, k.signature) for k in captures.kinds)
    made = ShardedPlan(plan, configuration, step.cluster, realized.units, kinds)
    if (program := captures.program) is None:
        return made
    root = UnitKind(program.graph, program.signature)
    return replace(made, root=root, step=replace(plan, rewrite=program.rewrite))


def train(
    model: nn.Module, optimizer: Any, steps: int, loss_of: Callable[[], torch.Tensor]
) -> dict[str, Any]:
    """Take steps; return losses, gradients of the first and the last, and parameters."""
    losses, gradients = [], []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
        gradients.append(named({n: p.grad for n, p in model.named_parameters()}))
        optimizer.step()
    return {
        "losses": losses,
        "gradients": gradients[0],
        "last gradients": gradients[-1],
        "parameters": named(dict(model.named_parameters())),
    }


def train_rank(
    model: nn.Module,
    optimizer: Any,
    rank: int,
    steps: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    samples: int = 2,
) -> dict[str, Any]:
    """Take steps on a rank's own batch, with its own dropout; only forward is in ``precision``."""

    def loss_of() -> torch.Tensor:
        with precision():
            loss: torch.Tensor = model(batch(rank, samples))
            return loss

    torch.manual_seed(3 + rank)
    return train(model, optimizer, steps, loss_of)


def named(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n.removeprefix("module."): whole(t) for n, t in tensors.items() if t is not None}


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Run everything that two ranks are needed for."""
    found: dict[str, Any] = {}
    captures: dict[tuple[str, float], ModelCapture] = {}
    for name, (configuration, kept, dropout) in CASES.items():
        key = (configuration.computes_in, dropout)
        if key not in captures:
            example = decoder(LAYERS, dropout=dropout)
            captures[key] = capture_units(example, batch(), device="cpu", precision=key[0])
        plan = plan_of(captures[key], configuration, kept)
        plain = wrap(decoder(LAYERS, dropout=dropout), configuration, plan.units)
        planned = apply(plan, decoder(LAYERS, dropout=dropout))
        for kind, model in (("plain", plain), ("planned", planned)):
            optimizer = make_optimizer(configuration, model, lr=1e-3)
            lowered = functools.partial(precision_context, configuration, "cpu")
            found[f"{name} {kind}"] = train_rank(model, optimizer, rank, 5, lowered)
            smaller = train_rank(model, optimizer, rank, 2, lowered, samples=1)
            found[f"{name} {kind} smaller"] = smaller
        if name == "autocast":
            found["without autocast"] = refused(functools.partial(planned, batch(rank)))
        if name == "mixed":
            found["checkpoint"] = _checkpointed(plan, planned, folder)
            found["names"] = sorted(get_model_state_dict(planned))
            found["evaluated"] = _evaluate(planned, batch(rank, samples=5))
            found["other shape"] = refused(functools.partial(planned, batch(rank, samples=3)))
    other = plan_of(captures["float32", 0.0], replace(FSDP, shard_ranks=4), (False, False))
    found["other world"] = refused(lambda: apply(other, decoder(LAYERS)))
    ours = plan_of(captures["float32", 0.0], FSDP, (False, False))
    found["other model"] = refused(lambda: apply(ours, decoder(LAYERS, dropout=0.1)))
    mesh = dist.init_device_mesh("cpu", (1, 2))
    found["other mesh"] = refused(lambda: apply(ours, decoder(LAYERS), mesh=mesh))
    return found


def four(rank: int, folder: Path) -> dict[str, Any]:
    """Shard over four ranks, and over two groups of two."""
    captures = capture_units(decoder(LAYERS, dropout=0.1), batch(), device="cpu")
    found: dict[str, Any] = {}
    for name, (shards, replicas) in {"flat": (4, 1), "hybrid": (2, 2)}.items():
        configuration = replace(FSDP, shard_ranks=shards, replicas=replicas)
        plan = plan_of(captures, configuration, (True, False))
        plain = wrap(decoder(LAYERS, dropout=0.1), configuration, plan.units)
        planned = apply(plan, decoder(LAYERS, dropout=0.1))
        for kind, model in (("plain", plain), ("planned", planned)):
            optimizer = make_optimizer(configuration, model, lr=1e-3)
            found[f"{name} {kind}"] = train_rank(model, optimizer, rank, 3)
    return found


def _evaluate(model: nn.Module, inputs: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        loss: float = model(inputs).item()
    model.train()
    return loss


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except PlanMismatch as error:
        return str(error)
    return ""


def _checkpointed(plan: ShardedPlan, model: nn.Module, folder: Path) -> bool:
    """Save a trained model by torch.distributed.checkpoint, load it into a fresh one; compare."""
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=str(folder / "checkpoint"))
    torch.manual_seed(9)
    fresh = apply(plan, decoder(LAYERS))
    state = {"model": get_model_state_dict(fresh)}
    dcp.load(state, checkpoint_id=str(folder / "checkpoint"))
    set_model_state_dict(fresh, state["model"])
    left, right = named(dict(model.named_parameters())), named(dict(fresh.named_parameters()))
    return all(torch.equal(left[n], right[n]) for n in left)


def die(rank: int, folder: Path) -> dict[str, Any]:
    """Lose rank 1 in the middle of the second step."""
    model = wrap(decoder(1), DDP, ())
    model(batch(rank)).backward()
    if rank == 1:
        os._exit(13)
    return _ended(lambda: model(batch(rank)).backward())


def fall_silent(rank: int, folder: Path) -> dict[str, Any]:
    """Let rank 1 stop in the middle of the second step, longer than the others wait."""
    model = wrap(decoder(1), DDP, ())
    model(batch(rank)).backward()
    if rank == 1:
        time.sleep(8)
        os._exit(13)
    return _ended(lambda: model(batch(rank)).backward())


def _ended(run: Callable[[], Any]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        run()
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - start}
    return {"error": "", "seconds": time.monotonic() - start}


def run_ranks(
    job: Callable[[int, Path], dict[str, Any]], world: int = 2, timeout_seconds: float = 60
) -> list[dict[str, Any] | None]:
    """Run a job on every rank; return what each found, ``None`` for one that died."""
    with tempfile.TemporaryDirectory() as name:
        context = mp.get_context("spawn")
        args = (world, name, job, timeout_seconds)
        processes = [context.Process(target=_rank, args=(r, *args)) for r in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(900)  # on a busy machine; gloo's own timeout ends ranks that wait in vain
            process.kill()
        files = [Path(name) / f"{rank}.pt" for rank in range(world)]
        return [torch.load(f, weights_only=False) if f.exists() else None for f in files]


def _rank(
    rank: int,
    world: int,
    folder: str,
    job: Callable[[int, Path], dict[str, Any]],
    timeout_seconds: float,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout_seconds),
    )
    torch.save(job(rank, Path(folder)), Path(folder) / f"{rank}.pt")
    os._exit(0)  # without goodbye: another rank may be gone
