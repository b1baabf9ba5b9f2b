"""Layers whose tokens are sent to experts of other ranks: what a plan of them says and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import planner
from planner.graphs.capture.exchange import exchange_prices
from planner.graphs.capture.exchange.layers import LayerSpec, name_of, require_room, run
from planner.graphs.capture.exchange.on_fakes import Ran, ran_on_fakes
from planner.graphs.expert_capacity import CapacityError
from planner.output.plan_text import EXPERTS as SENT
from planner.running.one_plan import digest
from tests.planner.running.expert_cases import balanced, experts_on, halved
from tests.planner.running.parallel_cases import ids
from tests.planner.running.threaded_ranks import RANKS, on_four


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks of which one is here, and the other is nowhere."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def planned(model: nn.Module, **said: Any) -> planner.Plan:
    return planner.fit(model, "1GB", inputs=ids(8, 32), progress="off", **said)


@pytest.fixture(scope="module")
def plans(mesh: DeviceMesh) -> dict[float, planner.Plan]:
    model = experts_on(mesh, "auto")
    return {factor: planned(model, capacity_factor=factor) for factor in (1.5, 1.75, 2)}


def test_each_layer_is_one_op_each_way(plans: dict[float, planner.Plan]) -> None:
    targets = [op.target for op in plans[2].graph.ops]
    assert [t.startswith(SENT) for t in targets].count(True) == 2
    assert targets.count("remat_planner.expert_exchange_backward.default") == 2
    again = [op for op in plans[2].graph.ops if op.target.startswith(SENT)]
    assert all(op.recomputable and op.seconds > 0 and op.flops > 0 for op in again)


def test_memory_is_counted_for_the_capacity_and_time_for_the_even_share(
    plans: dict[float, planner.Plan],
) -> None:
    peaks = [plan.plain_peak_bytes for plan in plans.values()]
    rows = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert 0 < rows[0] == pytest.approx(rows[1], rel=0.01), "as many more rows, as many more bytes"
    assert len({plan.plain_seconds for plan in plans.values()}) == 1


def test_what_is_held_in_the_end_is_what_was_given_and_made(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given counts from the first call on, and what is waited for once."""
    seen: list[tuple[Ran, list[Tensor]]] = []

    def ran(told: LayerSpec, given: list[Tensor], rows: int, grad: Tensor | None = None) -> Ran:
        found = ran_on_fakes(told, given, rows, grad)
        seen.append((found, given if grad is None else [*given, grad]))
        return found

    monkeypatch.setattr(exchange_prices, "ran_on_fakes", ran)
    planned(experts_on(mesh, "auto").bfloat16())
    assert len(seen) == 4  # forward and backward of layers alike, with rows of two numbers
    for found, given in seen:
        held = sum(t.nbytes for t in (*given, *found.made))
        assert found.held_bytes == held < max(m.level_bytes for m in found.moments)
        assert found.moments[0].level_bytes >= sum(t.nbytes for t in given)


def test_hooks_that_a_first_call_sets_up_are_no_call_of_the_layers(mesh: DeviceMesh) -> None:
    """Routers with a loss: transformers puts hooks there at the first call that asks for it."""
    assert planned(balanced(mesh)).capacity_factor == 2


def test_the_factor_is_said_and_saved(plans: dict[float, planner.Plan], tmp_path: Path) -> None:
    plan = plans[1.5]
    assert plan.capacity_factor == 1.5
    assert "experts of other ranks in 2 layers" in str(plan)
    assert "1.5 times the even share" in str(plan)
    plan.save(tmp_path / "plan.json")
    assert planner.load(tmp_path / "plan.json") == plan


def test_ranks_with_other_capacities_run_other_plans(plans: dict[float, planner.Plan]) -> None:
    """One of them would refuse a step that the others wait in."""
    assert len({digest(plan) for plan in plans.values()}) == len(plans)
    assert plans[2].signature["capacity_rows"] == dict.fromkeys(
        (f"model.model.layers.{i}.mlp.experts" for i in range(2)), 512
    )


def test_a_rank_gets_no_more_than_there_is(
    mesh: DeviceMesh, plans: dict[float, planner.Plan]
) -> None:
    """Two ranks have twice the even share together."""
    more = planned(experts_on(mesh, "auto"), capacity_factor=1000)
    assert more.plain_peak_bytes == plans[2].plain_peak_bytes


@pytest.mark.parametrize("factor", [0.5, True, "2", float("nan"), float("inf")])
def test_factors_that_are_none_are_refused(factor: Any) -> None:
    with pytest.raises(planner.BadRequest, match=r"capacity_factor is .*; expected a number"):
        planner.fit(nn.Linear(2, 2), "1GB", inputs=torch.zeros(4, 2), capacity_factor=factor)


def test_a_factor_without_effect_is_refused() -> None:
    step = {"inputs": torch.zeros(4, 2), "capacity_factor": 1.5}
    with pytest.raises(planner.BadRequest, match=r"capacity_factor=1\.5 would have no effect"):
        planner.fit(nn.Linear(2, 2), "1GB", **step)
    with pytest.raises(planner.BadCluster, match="capacity_factor= is for a model that"):
        planner.fit(nn.Linear(2, 2), "1GB", world_size=2, **step)


def test_tokens_that_ranks_cannot_share_evenly_are_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(planner.CaptureError, match="2 ranks share 21 tokens"):
        planner.fit(experts_on(mesh, "auto"), "1GB", inputs=ids(3, 7), progress="off")


class Drawing(nn.Module):
    """An activation that draws."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(nn.functional.silu(x), 0.1)


class Writing(nn.Module):
    """An activation that writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.silu(x)


class Scaling(nn.Module):
    """An activation with a tensor that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.silu(x)


class Tied(nn.Module):
    """An activation with a parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.silu(x) + self.shift


class Counting(nn.Module):
    """An activation that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.silu(x)


class Noting(nn.Module):
    """An activation that keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(x.shape)
        self.last = x.detach()
        return nn.functional.silu(x)


@pytest.mark.parametrize("make", [Counting, Noting])
def test_experts_that_change_pythons_state_are_refused(
    mesh: DeviceMesh, make: type[nn.Module]
) -> None:
    """They would do so twice a step; nothing of what they left while asked is left."""
    model: Any = experts_on(mesh, "auto")
    layers = [layer.mlp.experts for layer in model.model.model.layers]
    for experts in layers:
        experts.act_fn = make()
    with pytest.raises(planner.CaptureError, match=r"MixtralExperts.* changes .*(calls|last)"):
        planned(model)
    untouched = vars(make())
    for experts in layers:
        for name in {"calls", "shapes", "last"} & set(untouched):
            assert getattr(experts.act_fn, name) == untouched[name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda experts: setattr(experts, "act_fn", Drawing()), "the experts draw"),
        (lambda experts: setattr(experts, "act_fn", Writing()), "write to what they are given"),
        (lambda experts: setattr(experts, "act_fn", Scaling()), "no parameter or buffer of theirs"),
        (lambda experts: setattr(experts, "act_fn", Tied()), "under two names"),
        (
            lambda experts: setattr(experts.config, "_experts_implementation", "eager"),
            'sizes that depend on data.*experts_implementation="grouped_mm"',
        ),
    ],
)
def test_experts_that_cannot_run_again_are_refused(
    mesh: DeviceMesh, change: Callable[[Any], None], said: str
) -> None:
    model: Any = experts_on(mesh, "all_to_all")
    change(model.model.model.layers[1].mlp.experts)
    with pytest.raises(planner.CaptureError, match=said):
        planned(model)


class ByHand(nn.Module):
    """Rows sent to ranks by an all-to-all of one's own, as many as a router says."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        to = self.gate(x).argmax(-1)
        sent = torch.zeros(2, dtype=torch.long).scatter_add_(0, to, torch.ones_like(to))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        rows = x.new_empty(sum(received.tolist()), 16)
        dist.all_to_all_single(rows, x[to.argsort()], received.tolist(), sent.tolist())
        return rows


def test_an_all_to_all_of_ones_own_is_refused_by_its_line(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Linear(16, 16), ByHand())
    parallelize_module(model[0], mesh, ColwiseParallel(output_layouts=Replicate()))
    refused = r"test_sent_to_experts.py:\d+ needs the value of a tensor.*capacity_factor="
    with pytest.raises(planner.CaptureError, match=refused):
        planner.fit(model, "1GB", inputs=torch.randn(64, 16), loss=torch.mean, progress="off")


class Nobody(nn.Module):
    """Experts that are never run."""

    def forward(self) -> None:
        raise AssertionError


def test_all_ranks_refuse_more_rows_than_were_planned_for_or_none() -> None:
    """Ranks that hold own batches: what arrives at the third is what all send it."""

    def check(rank: int) -> None:
        world = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("ep", "tp"))
        layer = SimpleLayer(world["ep"], world["tp"])
        index = torch.tensor([[0, 1], [2, 3], [4, 7], [4, 5 if rank else 4]])
        require_room(LayerSpec(name_of(layer), "mlp", (), 8, 9, 1.125, "float32", ()), index)

    errors = on_four(check)
    assert {type(error) for error in errors.values()} == {CapacityError}
    (said,) = {str(error) for error in errors.values()}
    assert "sends 12 rows to rank 2 of the 4" in said
    assert "the experts of mlp (8, 8, 12, 4 rows to them)" in said
    assert "memory for 9, 1.125 times the even share of its largest call" in said
    assert "capacity_factor=1.5 or more" in said


def test_what_a_derived_class_does_around_it_is_done_once(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of the graph: the operator runs the class that is known, not the derived one."""
    experts_on(mesh, "auto")
    from transformers.distributed.expert_parallel import AllToAllEP

    experts: Any = Nobody()
    experts.num_experts = 2
    layer = halved()(experts, mesh, mesh)
    monkeypatch.setattr(AllToAllEP, "__call__", lambda _, tokens, index, weights: tokens * weights)
    told = LayerSpec(name_of(layer), "mlp", (), 3, 3, 1.0, "float32", ())
    ones = torch.ones(3, 1)
    assert torch.equal(run(told, [ones, ones.long(), ones]), ones)
    assert torch.equal(layer(ones, ones.long(), ones), ones / 2)


class SimpleLayer(SimpleNamespace):
    """What an implementation of transformers has, for two experts on each rank."""

    def __init__(self, ep_mesh: DeviceMesh, tp_mesh: DeviceMesh) -> None:
        forward = Nobody().forward
        super().__init__(
            ep_mesh=ep_mesh, tp_mesh=tp_mesh, num_local_experts=2, experts_forward=forward
        )

    __hash__ = object.__hash__  # type: ignore[assignment]
