"""The graph of a whole sharded step: what it holds, what it costs, and what torch can run of it."""

from __future__ import annotations

import functools

import pytest

from graphs import Kind, Phase, simulate, store_all
from graphs.cluster import cluster
from planner.sharding.assemble import assemble
from planner.sharding.configuration import Configuration, Strategy
from planner.sharding.regions import Regions, capture_regions
from planner.sharding.step import ShardedStep
from solvers import minimum_budget, solve
from tests.planner.sharding.blocks import batch, decoder

DDP = Configuration(Strategy.DDP, 1, 2, micro_batch=2)
ZERO1 = Configuration(Strategy.ZERO1, 2, micro_batch=2)
FSDP = Configuration(Strategy.FSDP, 2, micro_batch=2)


@functools.cache
def regions() -> Regions:
    return capture_regions(decoder(3), batch())


def step(configuration: Configuration, device: str = "cpu") -> ShardedStep:
    return assemble(regions(), configuration, cluster(device, configuration.world_size))


def resident(found: ShardedStep, kind: Kind) -> int:
    values = found.graph.values
    return sum(values[v].size_bytes for v in found.graph.resident if values[v].kind is kind)


@pytest.mark.parametrize("configuration", [DDP, ZERO1, FSDP], ids=str)
def test_a_plain_order_is_realized_as_it_is_but_for_second_gathers(
    configuration: Configuration,
) -> None:
    found = step(configuration)
    plain = simulate(found.graph, store_all(found.graph))
    realized = found.realize(range(len(found.graph.ops)))
    trace = simulate(found.graph, realized.schedule)
    assert all(unit.schedule.is_store_all for unit in realized.units)
    assert trace.seconds == pytest.approx(plain.seconds)
    assert trace.peak_bytes == plain.peak_bytes
    assert all(u.keep_gathered == (configuration is FSDP) for u in realized.units)


def test_states_are_divided_as_the_stage_says() -> None:
    whole = 4 * (64 * 32 + 2 * 32)  # the tied embedding and the norm
    whole += sum(regions().kind(0).graph.values[p.value].size_bytes for p in unit_parameters()) * 3
    assert resident(step(DDP), Kind.PARAMETER) == whole
    assert resident(step(ZERO1), Kind.PARAMETER) == whole
    assert resident(step(FSDP), Kind.PARAMETER) == whole // 2
    assert resident(step(DDP), Kind.OPTIMIZER) > resident(step(ZERO1), Kind.OPTIMIZER)
    four = step(Configuration(Strategy.FSDP, 4, micro_batch=2))
    assert resident(four, Kind.PARAMETER) == whole // 4


def unit_parameters() -> list:  # type: ignore[type-arg]
    return list(regions().kind(0).parameters)


def test_a_solvers_order_becomes_one_schedule_a_unit() -> None:
    found = step(FSDP)
    least = minimum_budget(found.graph).least_bytes
    most = simulate(found.graph, store_all(found.graph)).peak_bytes
    solution = solve(found.graph, (least + most) // 2)
    assert solution.schedule is not None
    realized = found.realize(solution.schedule.order)
    for unit in realized.units:  # each schedule runs on the unit's own graph
        simulate(found.kinds[unit.kind], unit.schedule)
    again = found.realize_units(realized.units)
    assert again == realized
    trace = simulate(found.graph, realized.schedule)
    assert trace.seconds == pytest.approx(simulate(found.graph, solution.schedule).seconds)
    assert found.realize(realized.schedule.order).units == realized.units


def test_gathers_run_one_unit_ahead_in_backward() -> None:
    found = step(FSDP)
    units = found.realize(range(len(found.graph.ops))).units
    again = [type(u)(u.path, u.kind, u.schedule, keep_gathered=False) for u in units]
    schedule = found.realize_units(again).schedule
    names = [found.graph.ops[i].name for i in schedule.order]
    turn = names.index("tangents_1")
    late = [n for n in names[turn - 1 :] if n.startswith(("all_gather", "copy_out", "reshard"))]
    assert late == [
        *("all_gather.h.2", "copy_out.h.2", "all_gather.h.1", "reshard.h.2"),
        *("copy_out.h.1", "all_gather.h.0", "reshard.h.1", "copy_out.h.0", "reshard.h.0"),
        "reshard.root",
    ]


def test_accumulation_counts_micro_steps_and_keeps_their_gradients() -> None:
    once = step(FSDP)
    thrice = step(Configuration(Strategy.FSDP, 2, micro_batch=2, accumulation=3))
    seconds = lambda s, phase: sum(o.seconds for o in s.graph.ops if o.phase is phase)  # noqa: E731
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.COMMUNICATION):
        assert seconds(thrice, phase) == pytest.approx(3 * seconds(once, phase))
    assert seconds(thrice, Phase.OPTIMIZER) == pytest.approx(seconds(once, Phase.OPTIMIZER))
    held = resident(thrice, Kind.GRADIENT)
    assert held == resident(once, Kind.PARAMETER)


def test_offloading_moves_states_to_the_host() -> None:
    offloaded = Configuration(Strategy.FSDP, 2, micro_batch=2, offload=True)
    found = step(offloaded, "A100-80GB")
    assert resident(found, Kind.PARAMETER) == resident(found, Kind.OPTIMIZER) == 0
    assert found.host_bytes >= 4 * resident(step(FSDP), Kind.PARAMETER)


def test_under_ddp_the_gradients_of_earlier_micro_steps_are_gone_before_the_optimizer() -> None:
    found = step(Configuration(Strategy.DDP, 1, 2, micro_batch=2, accumulation=3))
    graph = found.graph
    bucket = next(v for v in graph.values if v.name == "gradient buckets")
    index = next(i for i, v in enumerate(graph.values) if v.name == "accumulated gradients")
    assert graph.values[index].size_bytes == bucket.size_bytes
    users = [op.name for op in graph.ops if index in (*op.inputs, *op.outputs)]
    assert users == ["micro_steps", "reduced"]
    live = simulate(graph, store_all(graph)).live_bytes
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


def test_a_gather_in_another_precision_casts_the_shard_first() -> None:
    half = capture_regions(decoder(3), batch(), precision="bfloat16")
    configuration = Configuration(Strategy.FSDP, 2, micro_batch=2, precision="bfloat16")
    graph = assemble(half, configuration, cluster("A100-80GB", 2)).graph
    gathers = [op for op in graph.ops if op.target == "all_gather"]
    for op in gathers:
        (flat,) = op.outputs
        shard = graph.values[flat].size_bytes // 2
        assert shard <= op.workspace_bytes < shard + 512  # the allocator's granularity
    full = step(FSDP, "A100-80GB").graph
    assert all(op.workspace_bytes == 0 for op in full.ops if op.target == "all_gather")


def test_under_ddp_the_roots_gradients_go_into_the_buckets_one_by_one() -> None:
    """What a unit's node makes is held until the node ends; the head's gradient is gone before."""
    untied = capture_regions(decoder(3, tied=False), batch())
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
