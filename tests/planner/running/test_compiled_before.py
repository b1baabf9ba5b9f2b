"""A model compiled before it is planned: its own code is planned, and the plan runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import planner
from tests.planner.running.parallel import Decoder, sequence_parallel

# torch's compiler warns of what itself does
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.arange(32).view(2, 16)
INPUTS: dict[str, Any] = {"ids": IDS, "labels": IDS}


def blocks_in_place(model: Decoder, **options: Any) -> None:
    for block in model.blocks:
        block.compile(**options)


def method(model: Decoder, **options: Any) -> None:
    for block in model.blocks:
        up: Any = block.up
        up.forward = torch.compile(up.forward, **options)


def all_of_it(model: Decoder, **options: Any) -> None:
    model.compile(**options)


WAYS = (blocks_in_place, method, all_of_it)


def gradients(model: nn.Module) -> list[Tensor]:
    model(**INPUTS).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_runs_and_nothing_is_compiled(way: Callable[..., None]) -> None:
    compiled: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch.manual_seed(0)
    model = Decoder(1)
    torch.manual_seed(0)
    plain = Decoder(1)
    way(model, backend=backend, fullgraph=True)
    plan = planner.fit(model, "1GB", inputs=INPUTS, method="recompute_all", progress="off")
    planned = plan.apply(model)
    assert all(map(torch.equal, gradients(planned), gradients(plain)))
    assert planned(**INPUTS).grad_fn.name() == "_RunBackward"
    assert not compiled


def test_a_model_is_compiled_again_when_nothing_is_captured() -> None:
    compiled: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    model = Decoder(1)
    blocks_in_place(model, backend=backend, fullgraph=True)
    planner.fit(model, "1GB", inputs=INPUTS, progress="off")
    model(**INPUTS)
    assert compiled


def test_blocks_whose_parameters_lie_on_a_mesh() -> None:
    """What tensors on a mesh call is below the mode that keeps a compiler away."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        step: dict[str, Any] = {"inputs": INPUTS, "progress": "off"}
        usual = planner.fit(sequence_parallel(mesh), "1GB", **step)
        model: Any = sequence_parallel(mesh)
        blocks_in_place(model, backend="eager")
        found = planner.fit(model, "1GB", **step)
    finally:
        dist.destroy_process_group()
    assert [op.target for op in found.graph.ops] == [op.target for op in usual.graph.ops]
