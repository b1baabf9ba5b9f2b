"""Steps of a small decoder, assembled under the usual configurations, for tests to look into."""

from __future__ import annotations

import functools

from planner.graphs import Kind
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.wrapped.boundary import Parameter
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from tests.planner.sharding.blocks import batch, decoder

DDP = Configuration(Strategy.DDP, 1, 2, micro_batch=2)
ZERO1 = Configuration(Strategy.ZERO1, 2, micro_batch=2)
FSDP = Configuration(Strategy.FSDP, 2, micro_batch=2)


@functools.cache
def captures() -> ModelCapture:
    return capture_units(decoder(3), batch())


def step(configuration: Configuration, device: str = "cpu") -> ShardedStep:
    return assemble(captures(), configuration, cluster(device, configuration.world_size))


def resident(found: ShardedStep, kind: Kind) -> int:
    values = found.graph.values
    return sum(values[v].size_bytes for v in found.graph.resident if values[v].kind is kind)


def unit_parameters() -> list[Parameter]:
    return list(captures().kind(0).parameters)
