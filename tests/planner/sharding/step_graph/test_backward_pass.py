"""The backward half of a step: when torch lets go of what."""

from __future__ import annotations

from planner.graphs import plain_schedule, simulate
from planner.graphs.hardware.cluster import cluster
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.sharding.step_graph.assembly import assemble
from planner.sharding.wrapped.unit_captures import capture_units
from tests.planner.sharding.assembled import DDP, step, unit_parameters
from tests.planner.sharding.blocks import batch, decoder


def test_under_ddp_the_gradients_of_earlier_micro_steps_are_gone_before_the_optimizer() -> None:
    found = step(Configuration(Strategy.DDP, 1, 2, micro_batch=2, accumulation=3))
    graph = found.graph
    bucket = next(v for v in graph.values if v.name == "gradient buckets")
    index = next(i for i, v in enumerate(graph.values) if v.name == "accumulated gradients")
    assert graph.values[index].size_bytes == bucket.size_bytes
    users = [op.name for op in graph.ops if index in (*op.inputs, *op.outputs)]
    assert users == ["micro_steps", "reduced"]
    live = simulate(graph, plain_schedule(graph)).live_bytes
    assert len(graph.ops) - 2 == [op.name for op in graph.ops].index("reduced")
    assert live.max() >= live[-1] + bucket.size_bytes


def test_replicated_groups_keep_their_reduced_shards_until_all_are_done() -> None:
    """``FSDPParamGroup._all_reduce_state`` is cleared when backward ends."""
    flat = step(Configuration(Strategy.FSDP, 2, micro_batch=2, accumulation=2))
    hybrid = step(Configuration(Strategy.FSDP, 2, 2, micro_batch=2, accumulation=2))
    assert "reduced" not in [op.name for op in flat.graph.ops]
    held = next(op for op in hybrid.graph.ops if op.name == "reduced")
    names = [hybrid.graph.values[v].name for v in held.inputs]
    assert names == [f"gradient_shard.{n}" for n in ("h.2", "h.1", "h.0", "root")]


def test_under_ddp_the_roots_gradients_go_into_the_buckets_one_by_one() -> None:
    """What a unit's node makes is held until the node ends; the head's gradient is gone before."""
    untied = capture_units(decoder(3, tied=False), batch())
    graph = assemble(untied, DDP, cluster("cpu", 2)).graph
    reduced = {op.name: op.inputs for op in graph.ops if op.target == "all_reduce"}
    assert reduced["all_reduce.root"] == ()
    assert len(reduced["all_reduce.h.0"]) == len(unit_parameters())
    end = next(op for op in graph.ops if op.name == "accumulate_grad")
    assert [graph.values[v].name for v in end.inputs] == ["tangents_1"]


def test_a_units_inputs_stay_until_its_node_ends() -> None:
    """Autograd saves what backward reads; what only recomputation would read is a reserve."""
    graph = step(DDP).graph
    ended = {op.name: op.inputs for op in graph.ops if op.target == "ended"}
    ops = {op.name: i for i, op in enumerate(graph.ops)}
    for u in range(3):
        inputs = ended[f"ended.h.{u}"]
        assert sum(graph.values[v].size_bytes for v in inputs) >= batch().numel() * 32 * 4
        assert ops[f"ended.h.{u}"] < ops[f"all_reduce.h.{u}"]
