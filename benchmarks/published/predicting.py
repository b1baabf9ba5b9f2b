"""What a case is predicted to hold and how fast it is, by the rules of every plan."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from benchmarks.published.building import build
from benchmarks.published.case import Case, Library, Peak, Precision, Sharding
from benchmarks.published.keeping import INDEX_COPY, SOFTMAX, keeping
from planner.graphs import Graph, Phase, Schedule, plain_schedule, schedule_from_order, simulate
from planner.graphs.allocation import needs
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.training_step import capture_joint
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import strategy_of
from planner.request import request_of
from planner.sharding.captures import Captures
from planner.sharding.pricing import Planned, price
from planner.sharding.recipes import Checkpoint, recipes
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.solvers.baselines.blocks import find_blocks
from planner.solvers.baselines.checkpoint import order_of
from planner.solvers.model.order_from_kept import order_from_kept, turning_point
from planner.step_options import AnyOptions

GIB = 2**30
_NARROW = {Precision.AMP_FLOAT16: torch.float16, Precision.AMP_BFLOAT16: torch.bfloat16}
# Their numbers are of torch 1.7 and 1.10.
_OLD_TORCH = {Library.MESA, Library.TRANSFORMERS}


@dataclass(frozen=True)
class Predicted:
    """The peak of a rank, what its device keeps for itself not counted, and a rank's speed."""

    peak_gib: float
    per_second: float


def predicted(case: Case) -> Predicted:
    """Predict a case."""
    return _on_one(case) if case.sharding is Sharding.NONE else _on_several(case)


def _on_one(case: Case) -> Predicted:
    model, inputs = build(case)
    narrow = _NARROW.get(case.precision)
    with torch.autocast("cpu", narrow) if narrow else nullcontext():
        traced = capture_joint(
            model, arguments_of(inputs), optimizer=case.optimizer, device=case.device,
            accumulate=case.holds_gradients, eager=True,
        )  # fmt: skip
    graph = traced.captured.graph
    if case.library in _OLD_TORCH:
        graph = keeping(graph, SOFTMAX)
    if case.adapters:
        graph = keeping(graph, INDEX_COPY)
    schedule = plain_schedule(graph)
    if case.checkpoint is Checkpoint.FULL:
        schedule = schedule_from_order(graph, order_of(graph, find_blocks(graph)))
    trace = simulate(graph, schedule)
    update = sum(op.seconds for op in graph.ops if op.phase is Phase.OPTIMIZER)
    seconds = case.accumulation * (trace.seconds - update) + update
    return Predicted(_peak_gib(case, graph, schedule), case.accumulation * _samples(case) / seconds)


def _on_several(case: Case) -> Predicted:
    model, inputs = build(case)
    request = request_of(
        model,
        {
            "inputs": inputs, "device": case.device, "world_size": case.ranks,
            "optimizer": case.optimizer,
        },
        AnyOptions,
    )  # fmt: skip
    shop, where = Captures(request), cluster(case.device, case.ranks)
    fast = _planned(case, shop.step(way := _configuration(case), where))
    held = fast
    if case.holds_gradients:  # by steps of several micro-batches, of which the last was timed
        held = _planned(case, shop.step(replace(way, accumulation=2), where))
    speed = case.accumulation * _samples(case) / fast.seconds
    return Predicted(_peak_gib(case, held.graph, held.schedule), speed)


def _configuration(case: Case) -> Configuration:
    sharded = case.precision is Precision.SHARDED_BFLOAT16
    shared = case.sharding is Sharding.DDP
    return Configuration(
        strategy_of("ddp" if shared else "fsdp"),
        1 if shared else case.shard_ranks,
        case.ranks if shared else case.ranks // case.shard_ranks,
        case.batch,
        case.accumulation,
        "bfloat16" if sharded else "float32",
    )


def _planned(case: Case, step: ShardedStep) -> Planned:
    """Price the recipe of a case."""
    way = step.configuration
    stage = way.strategy.stages[0 if case.keeps_gathered else -1]
    if case.library is Library.TITAN and case.checkpoint is Checkpoint.SELECTIVE:
        kept = _every_second_product(step.graph)
        step = replace(step, graph=_cached(step.graph, kept))
        return price(way, step, order_from_kept(step.graph, kept))
    orders = (
        order
        for recipe, order in recipes(way, step.graph)
        if recipe.stage is stage and recipe.checkpoint is case.checkpoint
    )
    return price(way, step, next(orders))


def _every_second_product(graph: Graph) -> set[int]:
    """Return what attention and every second product of a block make, as torchtitan counts them."""
    kept, count, unit = set[int](), 0, ""
    for op in graph.ops[: turning_point(graph)]:
        inside = ".".join(op.module.split(".")[:2])
        if inside != unit:
            unit, count = inside, 0
        if op.flops and ("attention" in op.target or (count := count + 1) % 2):
            kept.update(op.outputs)
    return kept


def _cached(graph: Graph, kept: set[int]) -> Graph:
    """Let a unit's kept values live to the end of its backward, needed or not, as in a cache.

    A product whose sum a plan writes over it is, in eager mode, cached beside that sum.
    """
    values, ops = list(graph.values), list(graph.ops)
    cached: list[tuple[str, int]] = []
    for i, op in enumerate(ops):
        inside = [v for v in op.outputs if v in kept]
        if inside and "+" in op.target:
            values.append(replace(values[inside[0]], name=f"{op.name} itself"))
            inside.append(len(values) - 1)
            ops[i] = replace(op, outputs=(*op.outputs, inside[-1]))
        cached += [(op.module, v) for v in inside]
    for i, op in enumerate(ops):
        if op.name.startswith("ended."):
            unit = op.name.removeprefix("ended.") + "."
            own = [v for module, v in cached if module.startswith(unit)]
            ops[i] = replace(op, inputs=tuple(dict.fromkeys((*op.inputs, *own))))
    return replace(graph, ops=tuple(ops), values=tuple(values))


def _samples(case: Case) -> int:
    return case.batch * (case.length if case.library not in _IN_SAMPLES else 1)


_IN_SAMPLES = {Library.TRANSFORMERS, Library.MESA, Library.NVIDIA}


def _peak_gib(case: Case, graph: Graph, schedule: Schedule) -> float:
    reserved = case.peak is Peak.RESERVED
    held = (
        needs(graph, schedule).reserved_bytes if reserved else simulate(graph, schedule).peak_bytes
    )
    return (held - case.device.reserve_bytes) / GIB
