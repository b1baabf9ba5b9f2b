"""A few steps of sharded training, really run: one process a rank, on this machine, over gloo."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.placed import whole_of
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.running.engines import engine_of
from planner.sharding.apply_sharded import apply, make_optimizer, wrap
from planner.sharding.wrapping import Wrapping
from planner.verification.complete_records import tensor_bytes, watch_steps
from planner.verification.meeting import meeting
from planner.verification.training_run import scalar_of


@dataclass(frozen=True)
class ShardedTrial:
    """What every rank runs.

    ``factory`` returns a model and the inputs of rank ``r`` for a whole step, whose tensors are
    parted along their first dimension into the micro-steps. ``units`` say what to wrap; without a
    ``plan`` they run as the model is, by the kernels of ``engine``, its layers parted by ``styles``
    if they are. ``compared`` brings gradients and parameters back.
    """

    factory: Callable[[int], tuple[nn.Module, Any]]
    configuration: Configuration
    units: tuple[UnitPlan, ...]
    plan: ShardedStepPlan | None = None
    steps: int = 1
    seed: int = 0
    compared: bool = True
    styles: Any = None
    engine: str = "op_by_op"


@dataclass(frozen=True)
class RankMeasurement:
    """What one rank held and computed.

    ``static_bytes`` are the storages of all tensors when a steady step begins; ``peak_bytes`` adds
    the most that the allocator's own records show above that in a step whose records are
    ``complete``: they account for what is left at its end. It is the least of three such steps: a
    thread of gloo's that the machine keeps waiting lets go of its buffers late. If no step's are
    complete, what such threads freed is missing and the peak is the least of overstated ones.
    ``losses`` are of the steps before, ``gradients`` (whole, after reduction) of the first,
    ``parameters`` and ``buffers`` of the last.
    """

    peak_bytes: int
    static_bytes: int
    complete: bool
    seconds: float
    losses: tuple[float, ...]
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]


def run_ranks(trials: Sequence[ShardedTrial], *, threads: int = 1) -> list[list[RankMeasurement]]:
    """Run trials, all of one world size, one process a rank; return for each what ranks found."""
    (world,) = {trial.configuration.world_size for trial in trials}
    with tempfile.TemporaryDirectory(prefix="remat-planner-") as name:
        folder = Path(name)
        torch.save(tuple(trials), folder / "trials.pt")
        spawn(_rank, args=(world, name, threads), nprocs=world)  # type: ignore[no-untyped-call]
        ranks = [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(world)]
    return [list(found) for found in zip(*ranks, strict=True)]


def _rank(rank: int, world: int, folder: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with meeting(rank, world, folder):
        trials: tuple[ShardedTrial, ...] = torch.load(
            Path(folder) / "trials.pt", weights_only=False
        )
        gc.freeze()  # what is there now is never garbage; collecting becomes cheap
        found = [measure_rank(trial, rank) for trial in trials]
        torch.save(found, Path(folder) / f"{rank}.pt")


def measure_rank(trial: ShardedTrial, rank: int) -> RankMeasurement:
    """Train on this rank: a step for the gradients, ``steps`` that are timed, then watched ones."""
    gc.collect()
    before = tensor_bytes()
    model, optimizer, step, waiting = _training(trial, rank)
    torch.manual_seed(trial.seed + rank)
    losses, seconds = [step()], [0.0]
    kept = list(model.named_parameters()) if trial.compared else []
    gradients = {n: whole(p.grad) for n, p in kept if p.grad is not None}
    optimizer.step()
    for _ in range(trial.steps):
        _clear(model)
        start = time.perf_counter()
        losses.append(_full_step(step, optimizer))
        seconds.append(time.perf_counter() - start)
    parameters = {n: whole(p) for n, p in kept}
    buffers = {n: whole(b) for n, b in model.named_buffers()} if trial.compared else {}
    results = sum(t.nbytes for d in (gradients, parameters, buffers) for t in d.values())
    _clear(model)
    static = tensor_bytes() - before - results - waiting
    watched = watch_steps(lambda: _full_step(step, optimizer), lambda: _clear(model))
    return RankMeasurement(
        peak_bytes=static + watched.record.peak_bytes,
        static_bytes=static,
        complete=watched.complete,
        seconds=median(seconds[1:]) if trial.steps else 0.0,
        losses=tuple(losses),
        gradients=_named(gradients),
        parameters=_named(parameters),
        buffers=_named(buffers),
    )


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as the model does, which a strategy may have put into a module of its own."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _training(trial: ShardedTrial, rank: int) -> tuple[nn.Module, Any, Callable[[], float], int]:
    """Return model, optimizer, a step, and the bytes that micro-steps' inputs have outside it."""
    torch.manual_seed(trial.seed)
    made, inputs = trial.factory(rank)
    if trial.plan is None:
        _run_by_engine(made, trial)
    model = (
        wrap(made, trial.configuration, trial.units, styles=trial.styles)
        if trial.plan is None
        else apply(trial.plan, made, tensor_parallel=trial.styles)
    )
    del made
    gc.collect()
    optimizer = make_optimizer(trial.configuration, model)
    parts = trial.configuration.accumulation
    whole_call = arguments_of(inputs)
    chunks = [t.chunk(parts) for t in whole_call.tensors]
    device = next(model.parameters()).device.type
    unreduced = trial.configuration.strategy.part(Wrapping).unreduced
    waiting = sum({t.data_ptr(): t.nbytes for t in whole_call.tensors}.values())

    def micro_step(i: int) -> float:
        given = whole_call.tensors if parts == 1 else [c[i].clone() for c in chunks]
        args, kwargs, _ = whole_call.rebuild(given)
        with nullcontext() if i == parts - 1 else unreduced(model):
            with precision_context(trial.configuration, device):
                output = model(*args, **kwargs)  # held to the end, as in a user's loop
                loss = scalar_of(output) / parts if parts > 1 else scalar_of(output)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.item())

    def step() -> float:
        return sum(map(micro_step, range(parts)))

    return model, optimizer, step, waiting if parts > 1 else 0


def _run_by_engine(model: nn.Module, trial: ShardedTrial) -> None:
    """Let units run plainly by an engine's kernels, if those are not eager mode's."""
    plainly = engine_of(trial.engine).without_plan
    if plainly is None:
        return
    alike = dict[type, type]()
    for unit in (model.get_submodule(u.path) for u in trial.units if not u.row_wise):
        base = type(unit)
        if base not in alike:
            alike[base] = type(plainly(unit, None))
        unit.__class__ = alike[base]


def precision_context(
    configuration: Configuration, device: str
) -> AbstractContextManager[torch.autocast | None]:
    """Return what an applied model is called in: autocast, where no policy lowers the precision."""
    if configuration.computes_in != "autocast":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


def _full_step(step: Callable[[], float], optimizer: Any) -> float:
    loss = step()
    optimizer.step()
    return loss


def _clear(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, gathered if it is sharded."""
    return whole_of(tensor).detach().clone()
