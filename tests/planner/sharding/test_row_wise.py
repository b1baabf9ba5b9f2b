"""A table whose rows are looked up where they are, against the table as it was, on one rank."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.sharding.row_wise import keep_rows


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


TABLES = {
    "rows": (nn.Embedding(9, 4), torch.tensor([[0, 8, 3], [3, 3, 1]])),
    "a row each": (nn.Embedding(9, 4), torch.tensor([1, 1, 8])),
    "ids of 32 bits": (nn.Embedding(9, 4), torch.tensor([1, 1, 8], dtype=torch.int32)),
    "bags": (nn.EmbeddingBag(9, 4, mode="sum"), torch.tensor([[0, 8, 3], [3, 3, 1]])),
}


@pytest.mark.parametrize("case", TABLES)
def test_it_computes_what_the_table_did(mesh: DeviceMesh, case: str) -> None:
    plain, ids = TABLES[case]
    table = copy.deepcopy(plain)
    weight = keep_rows(table, mesh)
    assert [*dict(table.named_parameters())] == ["weight"]
    assert torch.equal(weight.full_tensor(), plain.weight)  # type: ignore[attr-defined]
    outputs = table(ids), plain(ids)
    assert torch.equal(*outputs)
    factors = torch.randn(outputs[0].shape)
    for output in outputs:
        (output * factors).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad.full_tensor(), plain.weight.grad)  # type: ignore[attr-defined]
    plain.weight.grad = None


def test_rows_are_cast_and_gradients_are_added_up_in_the_weights_own_precision(
    mesh: DeviceMesh,
) -> None:
    table = nn.Embedding(9, 4)
    weight = keep_rows(table, mesh, torch.bfloat16)
    found = table(torch.tensor([1, 1]))
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert weight.grad.full_tensor()[1].tolist() == [2.0] * 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [-1, 9])
def test_a_row_that_does_not_exist_raises_as_it_did(mesh: DeviceMesh, wrong: int) -> None:
    table = nn.Embedding(9, 4)
    ids: Tensor = torch.tensor([0, wrong])
    with pytest.raises(IndexError):
        table(ids)
    keep_rows(table, mesh)
    with pytest.raises(IndexError):
        table(ids)
