"""Models on a mesh whose other ranks are not there: what is planned of them, what refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore

import planner
from planner.errors import BadCluster, BadRequest, CaptureError, PlanMismatch
from planner.graphs import Graph, Kind, Op, Phase
from planner.graphs.capture.training_step import capture

BATCH, WIDTH = 6, 8


class Part(nn.Module):
    """Two products, which have to be made one after the other."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))


class Model(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.part(x)


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=16, store=FakeStore())
    yield
    dist.destroy_process_group()


def mesh_of(ranks: int) -> DeviceMesh:
    """Return the mesh of ranks that follow each other, of 16."""
    return init_device_mesh("cpu", (16 // ranks, ranks), mesh_dim_names=("data", "model"))["model"]


def parallel(ranks: int, part: nn.Module | None = None, **styles: Any) -> nn.Module:
    part = part or Part()
    given = {"up": ColwiseParallel(), "down": RowwiseParallel()} | styles
    parallelize_module(part, mesh_of(ranks), given)
    return Model(part)


def mean(x: Any) -> Tensor:
    return x.square().mean()  # type: ignore[no-any-return]


def collectives(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.phase is Phase.COMMUNICATION]


STEP: dict[str, Any] = {"inputs": torch.zeros(BATCH, WIDTH), "loss": mean}


@pytest.mark.usefixtures("world")
def test_a_step_holds_this_ranks_parts() -> None:
    graph = capture(parallel(4), torch.zeros(BATCH, WIDTH), loss=mean).graph
    held = {v.name: v.size_bytes for v in graph.values if v.kind is Kind.PARAMETER}
    size = {"part.up.weight": WIDTH * WIDTH, "part.up.bias": WIDTH, "part.down.bias": WIDTH}
    for name, count in (size | {"part.down.weight": WIDTH * WIDTH}).items():
        assert held[name] == 4 * count, name
    optimizer = sum(v.size_bytes for v in graph.values if v.kind is Kind.OPTIMIZER)
    assert optimizer == 2 * sum(held.values()) + 4 * len(held)


@pytest.mark.usefixtures("world")
def test_an_optimizer_that_is_built_already_works_on_parts() -> None:
    model = parallel(4)
    named = planner.fit(model, "1GB", optimizer="adamw", **STEP)
    built = planner.fit(model, "1GB", optimizer=torch.optim.AdamW(model.parameters()), **STEP)
    assert built.peak_bytes == named.peak_bytes


@pytest.mark.usefixtures("world")
def test_a_collective_is_one_op_and_one_value() -> None:
    """Waiting makes nothing; a sum in forward, and one in backward, as the input has a gradient."""
    x = torch.zeros(BATCH, WIDTH, requires_grad=True)
    graph = capture(parallel(2), x, loss=mean).graph
    found = collectives(graph)
    assert [op.target for op in found] == ["_c10d_functional.all_reduce.default"] * 2
    for op in found:
        assert [graph.values[v].size_bytes for v in op.outputs] == [4 * BATCH * WIDTH]
        assert op.recomputable
        assert op.workspace_bytes == 0
        assert op.module.startswith("part")
    assert not any("wait" in op.target for op in graph.ops)


@pytest.mark.usefixtures("world")
def test_seconds_are_those_of_the_group_and_its_stride() -> None:
    """Ranks that follow each other are in one node; across nodes it takes longer."""
    near = planner.fit(parallel(8), "80GB", device="A100-80GB", devices_per_node=8, **STEP)
    far = planner.fit(parallel(8), "80GB", device="A100-80GB", devices_per_node=4, **STEP)
    slow = planner.fit(
        parallel(8), "80GB", device="A100-80GB", devices_per_node=4, link="10Gb/s", **STEP
    )
    a, b, c = (sum(op.seconds for op in collectives(p.graph)) for p in (near, far, slow))
    assert 0 < a < b < c
    with pytest.raises(BadCluster, match="do not divide into nodes of 3"):
        planner.fit(parallel(8), "80GB", device="A100-80GB", devices_per_node=3, **STEP)


@pytest.mark.usefixtures("world")
def test_nccl_has_room_on_an_accelerator() -> None:
    plan = planner.fit(parallel(2), "80GB", device="A100-80GB", **STEP)
    without = planner.fit(parallel(2), "80GB", device="A100-80GB", reserve=0, **STEP)
    assert plan.peak_bytes - without.peak_bytes == 3 * 2**29
    said = " ".join(str(plan).split())
    assert "1.61 GB (1.50 GiB) of the budget are left to NCCL" in said
    assert "one rank of a model parallelized over 2, all of which run this plan; 1 coll" in said


@pytest.mark.usefixtures("world")
def test_a_model_without_data_is_planned() -> None:
    with torch.device("meta"):
        part = Part()
    plan = planner.fit(parallel(4, part), "1GB", **STEP)
    assert plan.peak_bytes == planner.fit(parallel(4), "1GB", **STEP).peak_bytes


@pytest.mark.usefixtures("world")
def test_another_mesh_or_placement_is_another_model() -> None:
    plan = planner.fit(parallel(2), "1GB", **STEP)
    assert plan.apply(parallel(2)) is not None
    with pytest.raises(PlanMismatch, match="parallelized over 4 ranks, planned for 2"):
        plan.apply(parallel(4))
    with pytest.raises(PlanMismatch, match="parallelized over no ranks, planned for 2"):
        plan.apply(Model(Part()))
    with pytest.raises(PlanMismatch, match=r"Shard\(dim=1\).*planned for .*Shard\(dim=0\)"):
        plan.apply(parallel(2, up=RowwiseParallel(input_layouts=Replicate())))


@pytest.mark.usefixtures("world")
def test_replanning_on_each_rank_is_refused() -> None:
    plan = planner.fit(parallel(2), "1GB", **STEP)
    with pytest.raises(PlanMismatch, match="plan on each rank by itself"):
        plan.apply(parallel(2), on_mismatch="replan")


def of_a_hook(mesh: DeviceMesh) -> nn.Module:
    class Hooked(Part):
        def forward(self, x: Tensor) -> Tensor:
            self.up.bias.register_post_accumulate_grad_hook(lambda p: None)
            return super().forward(x)

    return Model(parallelize_module(Hooked(), mesh, {"up": ColwiseParallel(use_local_output=True)}))


def drawing(mesh: DeviceMesh) -> nn.Module:
    part = Part(nn.Dropout(0.5))
    styles = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    return Model(parallelize_module(part, mesh, styles))


def uneven(mesh: DeviceMesh) -> nn.Module:
    part = Part()
    part.up, part.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)
    return Model(
        parallelize_module(part, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    )


def returned(mesh: DeviceMesh) -> nn.Module:
    styles = {"up": ColwiseParallel(), "down": RowwiseParallel(use_local_output=False)}

    class Whole(Part):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.between(self.up(x)))  # type: ignore[no-any-return]

    return Model(parallelize_module(Whole(), mesh, styles))


def sharded(mesh: DeviceMesh) -> nn.Module:
    model = Model(Part())
    fully_shard(model.part, mesh=mesh)
    return model


def around_the_root(mesh: DeviceMesh) -> nn.Module:
    part = Part()
    styles = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(part, mesh, styles)
    inside = PrepareModuleInput(
        input_layouts=(Shard(0),), desired_input_layouts=(Replicate(),), use_local_output=True
    )
    return parallelize_module(part, mesh, inside)


REFUSED: dict[str, tuple[Callable[[DeviceMesh], nn.Module], str]] = {
    "a hook on arrival": (of_a_hook, "register_post_accumulate_grad_hook"),
    "noise on a mesh": (drawing, r"test_placed.py:\d+ .*draws for a tensor that lies on a mesh"),
    "uneven parts": (uneven, "'part.up.weight', of shape .5, 8., .* divides what is parted"),
    "a DTensor returned": (returned, "output 'output' is a DTensor.*full_tensor"),
    "fully_shard before": (sharded, "is sharded by fully_shard already.*plan and apply first"),
    "hooks of the model": (around_the_root, "hold it in a module of your own"),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    build, said = REFUSED[case]
    step = {"inputs": torch.zeros(BATCH, WIDTH), "loss": None if "returned" in case else mean}
    with pytest.raises(CaptureError, match=said):
        planner.fit(build(mesh_of(2)), "1GB", **step)


def in_ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def in_fsdp(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def layer_in_ddp(model: nn.Module) -> nn.Module:
    return nn.Sequential(in_ddp(model), nn.Linear(8, 8))


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DDP": (in_ddp, "the model is wrapped in DistributedDataParallel already"),
    "a layer": (layer_in_ddp, "'0' is wrapped in DistributedDataParallel already"),
    "FSDP": (in_fsdp, "the model is wrapped in FullyShardedDataParallel already"),
    "replicate": (replicate, r"the model is replicated by replicate\(\) already"),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("case", WRAPPED)
def test_what_torch_wrapped_already_is_refused(case: str, ranks: int) -> None:
    """By its name, not for what its hooks do while they are traced."""
    wrap, told = WRAPPED[case]
    model = wrap(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    with pytest.raises(CaptureError, match=f"{told}.*plan and apply first"):
        planner.fit(model, "1GB", inputs=torch.randn(4, 8), loss=mean, world_size=ranks)


@pytest.mark.usefixtures("world")
def test_what_else_is_said_to_fit_is_refused() -> None:
    with pytest.raises(BadCluster, match="parallelized over ranks already"):
        planner.fit(parallel(2), "1GB", world_size=16, **STEP)
    with pytest.raises(BadRequest, match="engine='inductor' is for models that are on one device"):
        planner.fit(parallel(2), "1GB", engine="inductor", **STEP)
    placed = DTensor.from_local(torch.zeros(BATCH, WIDTH), mesh_of(2), [Replicate()])
    with pytest.raises(CaptureError, match=r"an argument is a DTensor.*to_local\(\)"):
        planner.fit(parallel(2), "1GB", inputs=placed, loss=mean)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.usefixtures("world")
def test_context_parallelism_is_refused() -> None:
    x = torch.zeros(2, 16, WIDTH)
    said = r"test_placed.py:\d+ .*inside context_parallel"
    inside = context_parallel(mesh_of(2), buffers=[x], buffer_seq_dims=[1])
    with inside, pytest.raises(CaptureError, match=said):
        planner.fit(Attends(), "1GB", inputs=x, loss=mean)
    assert planner.fit(Attends(), "1GB", inputs=x, loss=mean).fits


class Sums(nn.Module):
    """Sums in place over all ranks, as experts of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().mean()
        dist.all_reduce(scale, dist.ReduceOp.MAX)
        return self.layer(x / scale)  # type: ignore[no-any-return]


class Sends(nn.Module):
    """Sends what it has to the next rank, as a pipeline does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        dist.send(y.detach(), 1)
        return y


@pytest.mark.usefixtures("world")
def test_collectives_of_a_models_own() -> None:
    plan = planner.fit(Sums(), "1GB", **STEP)
    found = collectives(plan.graph)
    assert [op.target for op in found] == ["_c10d_functional.all_reduce.default"]
    twice = capture(nn.Sequential(Sums(), Sums()), torch.zeros(BATCH, WIDTH), loss=mean)
    assert len(collectives(twice.graph)) == 2, "gradients pass a collective in place as they are"
    with pytest.raises(PlanMismatch, match="plan on each rank by itself"):
        plan.apply(Sums(), on_mismatch="replan")
    with pytest.raises(CaptureError, match=r"a collective of the model's own.*world_size= out"):
        planner.fit(nn.Sequential(Sums(), Sums()), "1GB", world_size=2, **STEP)
    with pytest.raises(CaptureError, match=r"distributed.send is between two ranks"):
        planner.fit(Sends(), "1GB", **STEP)


@pytest.mark.usefixtures("world")
def test_a_sequence_is_parted_and_gathered() -> None:
    class Normed(Part):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(x))

    part = parallel(
        2,
        Normed(),
        norm=SequenceParallel(use_local_output=True),
        up=ColwiseParallel(input_layouts=Shard(1)),
        down=RowwiseParallel(output_layouts=Shard(1)),
    )
    x = torch.zeros(2, BATCH, WIDTH)
    graph = capture(part, x, loss=mean).graph
    found = {op.target.split(".")[1] for op in collectives(graph)}
    assert found == {"all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"}
    for op in collectives(graph):
        made = sum(graph.values[v].size_bytes for v in op.outputs)
        if "gather" in op.target:
            assert op.workspace_bytes == made
        if "scatter" in op.target:
            assert op.workspace_bytes == 2 * made
