"""What of a captured step grows with its samples: a bound for other micro-batches and more ranks.

A product takes so many times as long for so many times the samples, unless memory holds it up; any
other op takes as long as the bytes of activations that it reads and writes; a collective of
activations as long as it takes beyond its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.graphs import Graph, Op, Phase
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import all_reduce_seconds
from planner.sharding.wrapped.boundary import UnitCapture
from planner.sharding.wrapped.unit_captures import ModelCapture

_HELD_UP = 1.01
"""By how much a product has to take longer than its memory to be held up by compute alone."""


@dataclass(frozen=True, slots=True)
class Growing:
    """Seconds of a micro-step, without starts and without what weights alone take."""

    compute: float
    collectives: float


def growing(captures: ModelCapture, cluster: Cluster, ranks: int = 1) -> Growing:
    """Add up what grows with the samples of a micro-step, nothing run again.

    Args:
        captures: of one micro-step.
        cluster: what it was priced for.
        ranks: over how many its layers are parted.
    """
    found = [_growing(captures.kinds[kind], cluster, ranks) for kind in captures.kind_of]
    found.append(_growing(captures.root, cluster, ranks))
    return Growing(sum(g.compute for g in found), sum(g.collectives for g in found))


def _growing(unit: UnitCapture, cluster: Cluster, ranks: int) -> Growing:
    if unit.table:
        return Growing(0.0, 0.0)
    start = all_reduce_seconds(0.0, ranks, cluster)  # none of the others starts later
    compute = collectives = 0.0
    large = activations(unit)
    for op in unit.own_ops():
        share = _share(unit.graph, op, large)
        if op.phase is Phase.COMMUNICATION:
            collectives += max(0.0, op.seconds - start) * (share == 1.0)
        elif op.phase is not Phase.OPTIMIZER:
            compute += _compute_seconds(op, share, cluster)
    return Growing(compute, collectives)


def _compute_seconds(op: Op, share: float, cluster: Cluster) -> float:
    device = cluster.device
    if op.seconds <= device.issue_seconds:  # it waits for the host, whatever its size
        return 0.0
    seconds = max(0.0, op.seconds - device.launch_seconds)
    if not op.flops:
        return seconds * share
    free = seconds > op.moved_bytes / device.bytes_per_second() * _HELD_UP
    return seconds if free and share else 0.0


def _share(graph: Graph, op: Op, large: set[int]) -> float:
    """Return the part of what an op reads and writes that is activations."""
    values = {*op.inputs, *op.outputs}
    whole = sum(graph.values[v].size_bytes for v in values)
    return sum(graph.values[v].size_bytes for v in values & large) / whole if whole else 0.0


def activations(unit: UnitCapture) -> set[int]:
    """Return the values that are made of inputs or gradients of outputs, and are no weight's.

    A value as large as a parameter from which only gradients of parameters are made is one's.

    Args:
        unit: or the root.
    """
    graph, weights = unit.graph, {p.value for p in unit.parameters}
    made = {v for v in graph.resident if v not in weights and graph.values[v].size_bytes}
    consumers: dict[int, list[Op]] = {}
    for op in graph.ops:
        if op.target == "tangent" or made.intersection(op.inputs):
            made.update(op.outputs)
        for v in op.inputs:
            consumers.setdefault(v, []).append(op)
    elements = {math.prod(p.shape) for p in unit.parameters}
    sizes = {n * itemsize for n in elements for itemsize in (2, 4, 8)}
    gradients = {p.gradient for p in unit.parameters if p.gradient is not None}
    for op in reversed(graph.ops):
        for v in op.outputs:
            ahead = [x for reader in consumers.get(v, ()) for x in reader.outputs]
            if graph.values[v].size_bytes in sizes and all(x in gradients for x in ahead):
                gradients.add(v)
    return made - weights - gradients
