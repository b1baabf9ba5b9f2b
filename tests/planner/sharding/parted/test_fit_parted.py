"""Tensor parallelism as a choice of ``fit``: what is chosen, refused, shown, saved and exported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import planner
from planner.errors import (
    BadCluster,
    BadRequest,
    BadSpec,
    CaptureError,
    InfeasibleBudget,
    PlanMismatch,
)
from planner.graphs import Kind, Phase
from planner.make_cluster import make_cluster
from planner.output.sharded_plan_text import sharded_summary
from planner.output.tensor_parallel_text import degree_rows
from planner.plan.configuration import Configuration
from planner.plan.strategy import Strategy
from planner.request import request_of
from planner.sharding.captures import Captures
from planner.sharding.configurations import Parted, configurations
from planner.sharding.parted.parallelize import described
from planner.sharding.parted.same_plan import styles_of
from planner.sharding.parted.ways import Ways, ways_of
from planner.solvers import Limits
from planner.tensor_parallel import TensorParallel, tensor_parallel_of
from tests.planner.sharding.parted.decoders import (
    along_sequence,
    batch,
    both,
    decoder,
    step,
    styles,
)

H100 = "H100 SXM"
COLUMN = styles()["blocks.*.q"]


def fitted(budget: str, **said: Any) -> planner.ShardedPlan:
    plan = planner.fit(decoder(), budget, **step(**said))
    assert isinstance(plan, planner.ShardedPlan)
    return plan


@pytest.fixture(scope="module")
def parted() -> planner.ShardedPlan:
    """Two ranks for each layer, since nothing else was allowed."""
    return fitted("1GB", tensor_parallel=TensorParallel(styles(), degrees=(2,)), global_batch=2)


@pytest.fixture(scope="module")
def searched() -> planner.ShardedPlan:
    """All degrees, on a node of eight; eight ranks are more than there are heads."""
    inputs = batch(samples=1)
    return fitted("10GB", tensor_parallel=styles(), device=H100, world_size=8, inputs=inputs)


def test_samples_are_counted_over_the_ranks_that_have_some_of_their_own(
    parted: planner.ShardedPlan,
) -> None:
    c = parted.configuration
    assert (c.tensor_ranks, c.data_ranks, c.world_size, c.global_batch) == (2, 2, 4, 2)
    assert dict(c.mesh) == {"shard": 2, "tensor": 2}


def test_fewer_samples_than_ranks_need_layers_in_parts(parted: planner.ShardedPlan) -> None:
    with pytest.raises(BadCluster, match="global batch of 2 does not divide over 4 ranks"):
        fitted("1GB", global_batch=2)
    assert "fewer samples than ranks" in str(parted)
    needed = TensorParallel(styles(), degrees=(1, 2), only_if_needed=True)
    plan = fitted("1GB", global_batch=2, tensor_parallel=needed)
    assert plan.configuration == parted.configuration


def test_layers_are_parted_where_nothing_fits_otherwise() -> None:
    with pytest.raises(InfeasibleBudget) as refused:
        fitted("1MB", global_batch=4, optimizer=None)
    needed = TensorParallel(styles(), degrees=(1, 2), only_if_needed=True)
    budget = f"{int(refused.value.least_bytes * 0.97)}B"
    plan = fitted(budget, global_batch=4, optimizer=None, tensor_parallel=needed)
    assert plan.fits
    assert plan.configuration.tensor_ranks > 1
    assert "chosen: nothing fits without it" in plan.explain()


@pytest.mark.slow
def test_why_layers_cannot_be_parted_is_said_where_nothing_fits() -> None:
    needed = TensorParallel(styles(), degrees=(1, 8), only_if_needed=True)
    options = {"optimizer": None, "world_size": 8, "global_batch": 8, "tensor_parallel": needed}
    with pytest.raises(InfeasibleBudget, match="Layers cannot be parted over ranks, either"):
        fitted("1MB", **options)


def test_what_a_pipeline_would_hold_is_said_where_no_degree_fits() -> None:
    said = TensorParallel(styles(), degrees=(1, 2))
    with pytest.raises(InfeasibleBudget, match="No pipeline of up to"):
        fitted("800KB", global_batch=4, optimizer=None, tensor_parallel=said)


@pytest.mark.slow
def test_where_states_alone_fill_the_device_parts_are_not_looked_at() -> None:
    """They are over all ranks anyway."""
    told: list[str] = []
    needed = TensorParallel(styles(), degrees=(1, 2), only_if_needed=True)
    with pytest.raises(InfeasibleBudget, match="proved for every configuration"):
        fitted("100KB", global_batch=4, tensor_parallel=needed, progress=told.append)
    assert not any("parted" in sentence for sentence in told)


def test_measured_times_are_not_compared_with_estimates() -> None:
    with pytest.raises(BadCluster, match="does not go with costs='measured'"):
        fitted("1GB", tensor_parallel=both(2), costs="measured")


def test_samples_that_do_not_divide_are_no_reason_to_part_layers() -> None:
    needed = TensorParallel(styles(), degrees=(1, 2), only_if_needed=True)
    with pytest.raises(BadCluster, match="does not divide over 4"):
        fitted("1GB", world_size=4, global_batch=6, tensor_parallel=needed)
    found = TensorParallel(styles(), degrees=(1, 2))
    plan = fitted("1GB", world_size=4, global_batch=6, tensor_parallel=found)
    assert "6 samples do not divide over 4 groups of ranks" in " ".join(plan.explain().split())
    assert "chosen: no other was asked for" in plan.explain()


@pytest.mark.slow
def test_a_model_of_transformers_whose_first_weight_is_parted() -> None:
    """Its weights enter as local tensors, through views that nobody else reads."""
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).train()
        ids = torch.zeros(2, 16, dtype=torch.long)
    plan = planner.fit(
        model, "10GB", inputs={"input_ids": ids, "labels": ids}, world_size=4, device=H100,
        global_batch=8, tensor_parallel=2, limits=Limits(seconds=5.0),
    )  # fmt: skip
    assert isinstance(plan, planner.ShardedPlan)
    assert plan.configuration.tensor_ranks == 2
    assert "impossible" not in plan.explain()


def mixtral(inner: int = 64) -> Any:
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        use_cache=False,
    )
    return transformers.MixtralForCausalLM(config).train()


def with_experts(model: nn.Module, parted: Any) -> planner.ShardedPlan:
    ids = torch.zeros(2, 16, dtype=torch.long)
    plan = planner.fit(
        model, "1GB", tensor_parallel=parted, limits=Limits(seconds=5.0),
        **step(
            inputs={"input_ids": ids, "labels": ids}, loss=lambda output: output.loss,
            world_size=2, global_batch=2,
        ),
    )  # fmt: skip
    assert isinstance(plan, planner.ShardedPlan)
    return plan


def test_experts_are_parted_by_features_and_summed_over_the_ranks() -> None:
    plan = with_experts(mixtral(), 2)
    assert plan.configuration.tensor_ranks == 2
    assert len(plan.kinds) == 1
    graph = plan.kinds[0].graph
    sent = [op for op in graph.ops if op.phase is Phase.COMMUNICATION]
    assert [op.module for op in sent].count("mlp.experts") == 2  # gradients
    assert sum(op.module.startswith("mlp") for op in sent) == 3  # and the output
    shapes = {name: shape for name, shape, *_ in plan.kinds[0].signature["parameters"]}
    assert shapes["mlp.experts.gate_up_proj"] == [4, 128, 32]
    held = {v.name: v.size_bytes for v in graph.values if v.kind is Kind.PARAMETER}
    assert held["mlp.experts.gate_up_proj"] == 4 * 128 * 32 * 4 // 2
    assert held["mlp.experts.down_proj"] == 4 * 32 * 64 * 4 // 2


def test_attention_alone_is_parted_by_ones_own_styles() -> None:
    attention = "model.layers.*.self_attn."
    own = {f"{attention}{n}_proj": ColwiseParallel() for n in "qkv"}
    own[f"{attention}o_proj"] = RowwiseParallel()
    plan = with_experts(mixtral(), TensorParallel(own, degrees=(2,)))
    assert plan.configuration.tensor_ranks == 2


def test_features_of_experts_that_ranks_do_not_divide_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"'gate_up_proj' of MixtralExperts.*do not divide"):
        with_experts(mixtral(inner=63), 2)


def test_experts_that_tokens_are_sent_to_are_refused_by_name() -> None:
    model = mixtral()
    model._tp_plan = {**model._tp_plan, "model.layers.*.mlp.experts": "ep_dispatch_experts"}
    with pytest.raises(BadRequest, match=r"'ep_dispatch_experts'.*up to the router"):
        with_experts(model, 2)
    model = mixtral()
    model._tp_plan = {k: w for k, w in model._tp_plan.items() if not k.endswith(".down_proj")}
    with pytest.raises(CaptureError, match="'down_proj' of MixtralExperts has 'no style'"):
        with_experts(model, 2)
    model = mixtral()
    del model._tp_plan["model.layers.*.mlp.experts"]
    with pytest.raises(BadRequest, match=r"for the parameter 'model\.layers\.\*\.mlp\.experts\.ga"):
        with_experts(model, 2)


def test_more_ranks_than_heads_cannot_share_them() -> None:
    said = r"with layers parted over 8 ranks, .*unflatten.*a number of heads.*choose degrees"
    with pytest.raises(CaptureError, match=said):
        fitted(
            "10GB",
            tensor_parallel=TensorParallel(styles(), degrees=(8,)),
            world_size=8,
            global_batch=1,
        )


def test_a_model_that_declares_nothing_stays_whole_by_default() -> None:
    asked = tensor_parallel_of(request_of(decoder(), step()).tensor_parallel)
    assert asked is not None
    assert asked.only_if_needed
    assert ways_of(decoder(), asked, make_cluster(H100, 8)) == Ways()


def test_every_degree_is_shown_with_its_reason(searched: planner.ShardedPlan) -> None:
    rows = {(row.degree, row.sequence): row for row in degree_rows(searched)}
    refused = {r.degree: r.reason for r in searched.tensor.refused} if searched.tensor else {}
    assert {1, 2, 4, 8} == {degree for degree, _ in rows} | {*refused}
    assert [row.chosen for row in rows.values()].count(True) == 1
    for text in (str(searched), searched.explain()):
        assert "Tensor parallelism: the best of each degree" in text
        assert all(name in text for name in ("TP 2", "TP 4", "TP 8"))
    for row in rows.values():
        assert row.chosen or row.reason.startswith("slower")
        assert row.chosen or row.seconds_per_sample >= searched.seconds_per_sample


def _space(degrees: tuple[int, ...]) -> tuple[Any, Captures, Ways]:
    said = step(device=H100, world_size=8, tensor_parallel=both(*degrees))
    request = request_of(decoder(), said)
    cluster = make_cluster(request.hardware, 8)
    ways = ways_of(request.model, both(*degrees), cluster)
    shop = Captures(request, ways)
    among = [
        c
        for way in ways.styles
        for c in configurations(8, 8, devices_per_node=8, offload=False, parted=way)
    ]
    return shop.space(cluster, among), shop, ways


@pytest.fixture(scope="module")
def two() -> tuple[Any, Captures, Ways]:
    return _space((1, 2))


@pytest.mark.parametrize("degrees", [(1, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_what_needs_no_capture_is_a_bound(degrees: tuple[int, ...], two: Any) -> None:
    space, _, _ = two if degrees == (1, 2) else _space(degrees)
    compared = 0
    for c in space.configurations:
        if c.tensor_ranks == 1 or c.shard_ranks < c.data_ranks:
            continue
        before = space.quick_seconds(c)
        assert not space.impossible(c)
        after = space.quick_seconds(c)  # more is known, of one sample
        whole = space.open(c).graph.seconds
        assert before <= after * (1 + 1e-9)
        assert after <= whole * (1 + 1e-9), str(c)
        assert after <= space.floor_seconds(c) * (1 + 1e-9)
        compared += 1
    assert compared >= 4


def test_only_products_that_ranks_have_parts_of_are_smaller(two: Any) -> None:
    space, shop, _ = two
    one, half, along = (
        next(c for c in space.configurations if (c.tensor_ranks, c.sequence_parallel) == way)
        for way in ((1, False), (2, False), (2, True))
    )
    (whole,), (part,), (split,) = (shop.captured(c).kinds for c in (one, half, along))
    shapes = [{p.name: p.shape for p in k.parameters} for k in (whole, part, split)]
    assert [s["up.weight"] for s in shapes] == [(256, 64), (128, 64), (128, 64)]
    assert [s["first.weight"] for s in shapes] == [(64,)] * 3
    inputs = [k.graph.values[k.inputs[0]].size_bytes for k in (whole, part, split)]
    assert inputs[0] == inputs[1] == 2 * inputs[2]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("perhaps", BadRequest, "tensor_parallel is 'perhaps'; expected 'if_needed'"),
        (0, BadRequest, "expected numbers of ranks"),
        ({}, BadRequest, "not an empty one"),
        ({"blocks.*.q": "colwise"}, BadRequest, "the path of a module and a style"),
        ({"layers.*.q": styles()["blocks.*.q"]}, BadRequest, "names modules 'layers.*.q', and"),
        (2, BadRequest, "declares no tensor parallelism"),
        (TensorParallel({"blocks.*.first": COLUMN}, degrees=(2,)), BadRequest, "does not suit"),
        (both(8), BadCluster, "8 ranks would span nodes of 4 devices"),
        (both(3), BadCluster, "3 ranks do not divide"),
    ],
)
def test_what_cannot_be_is_refused_by_name(said: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("*", r"\*")):
        fitted("1GB", tensor_parallel=said)


def test_one_device_and_other_strategies_have_no_layers_in_parts() -> None:
    with pytest.raises(BadCluster, match="tensor_parallel= would have no effect on one device"):
        planner.fit(decoder(), "1GB", inputs=step()["inputs"], tensor_parallel=2)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="DDP takes no model that is parted"):
        Configuration(Strategy.DDP, 1, 2, tensor_ranks=2)
    with pytest.raises(ValueError, match="sequence_parallel is for tensor_ranks above 1"):
        Configuration(Strategy.FSDP, 2, sequence_parallel=True)


def test_a_file_has_all_of_it(parted: planner.ShardedPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    parted.save(path)
    assert planner.load(path) == parted
    assert '"parallelism tensor"' in path.read_text()
    said = json.loads(json.dumps(sharded_summary(parted)))
    assert said["tensor_ranks"] == 2
    assert any(row["chosen"] for row in said["tensor_parallel_degrees"])


@pytest.mark.parametrize("name", ["deepspeed", "accelerate"])
def test_a_format_that_cannot_say_it_says_so(
    parted: planner.ShardedPlan, name: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSpec, match=r"parts layers over 2 ranks .* export fsdp2"):
        parted.export(tmp_path / "file", name)


def test_the_script_makes_the_mesh_and_asks_for_the_styles(
    parted: planner.ShardedPlan, tmp_path: Path
) -> None:
    notes = parted.export(tmp_path / "train.py", "fsdp2")
    text = (tmp_path / "train.py").read_text()
    compile(text, "train.py", "exec")
    assert 'MESH, NAMES = (2, 2), ("shard", "tensor")' in text
    assert "plan.apply(" in text
    assert "tensor_parallel=STYLES" in text
    assert any("same samples" in note for note in notes)


def test_other_styles_than_the_planned_are_refused(parted: planner.ShardedPlan) -> None:
    model: nn.Module = decoder()
    sequence = parted.configuration.sequence_parallel
    planned = along_sequence() if sequence else styles()
    given = styles_of(parted, model, both(2))
    assert described(given) == described(planned)
    with pytest.raises(PlanMismatch, match="pass them again"):
        styles_of(parted, model, None)
    other = planned | {"blocks.*.q": planned["blocks.*.o"]}
    with pytest.raises(PlanMismatch, match=r"the style of 'blocks.\*.q' is RowwiseParallel"):
        styles_of(parted, model, planner.TensorParallel(other, other))


def test_degrees_that_do_not_divide_a_declared_models_heads_are_named() -> None:
    model: Any = decoder()
    model._tp_plan = {"blocks.*.q": "colwise", "elsewhere": "rowwise"}
    model.config = SimpleNamespace(num_attention_heads=6, num_key_value_heads=2)
    ways = ways_of(model, planner.TensorParallel(), make_cluster(H100, 8))
    assert [(r.degree, r.reason) for r in ways.refused] == [
        (4, "num_attention_heads is 6, which 4 ranks do not divide"),
        (8, "num_attention_heads is 6, which 8 ranks do not divide"),
    ]
    assert ways.parted == (Parted(2),)
    assert ways.declared
    model._tp_plan["blocks.*.k"] = "packed_colwise"
    with pytest.raises(BadRequest, match=r"declares 'packed_colwise' for 'blocks.\*.k'"):
        ways_of(model, planner.TensorParallel(), make_cluster(H100, 8))
