"""The forward half of a step: what a gather takes."""

from __future__ import annotations

from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.unit_captures import capture_units
from tests.planner.sharding.assembled import FSDP, step
from tests.planner.sharding.blocks import batch, decoder


def test_a_gather_in_another_precision_casts_the_shard_first() -> None:
    half = capture_units(decoder(3), batch(), precision="bfloat16")
    configuration = Configuration(Strategy.FSDP, 2, micro_batch=2, precision="bfloat16")
    graph = assemble(half, configuration, cluster("A100-80GB", 2)).graph
    gathers = [op for op in graph.ops if op.target == "all_gather"]
    for op in gathers:
        (flat,) = op.outputs
        shard = graph.values[flat].size_bytes // 2
        assert shard <= op.workspace_bytes < shard + 512  # the allocator's granularity
    full = step(FSDP, "A100-80GB").graph
    assert all(op.workspace_bytes == 0 for op in full.ops if op.target == "all_gather")
