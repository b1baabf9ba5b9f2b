"""What is private of Dynamo and Inductor: each name does what it is taken for, on this torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.inductor.compiler import joint_step
from planner.graphs.torch_api.inductor.partitioner import (
    JointStep,
    Partitioner,
    copy_of,
    cut_by_tags,
    cut_by_torch,
    draws_outside,
)
from planner.graphs.torch_api.inductor.scheduler import kernels_of, mark


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(model(x), 0.1).tanh().sum()


@pytest.fixture(scope="module")
def step() -> JointStep:
    found = joint_step(loss, nn.Linear(8, 16), torch.randn(4, 8))
    assert found is not None
    return found


def test_a_step_is_handed_over_and_nothing_runs(step: JointStep) -> None:
    names = [n.name for n in step.module.graph.find_nodes(op="placeholder")]
    assert names == ["primals_1", "primals_2", "primals_3", "tangents_1"]
    assert step.forward_outputs == 1
    assert len(step.static) == 2
    assert [tuple(t.shape) for t in step.trained] == [(16, 8), (16,)]
    assert not step.is_symbolic
    assert joint_step(loss, nn.Linear(8, 16).requires_grad_(False), torch.randn(4, 8)) is None


def test_code_that_breaks_is_refused() -> None:
    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x.sum()

    with pytest.raises(CaptureError, match="does not take the step whole"):
        joint_step(broken, torch.ones(2, requires_grad=True))


def test_both_cuts_leave_the_step_as_it_was(step: JointStep) -> None:
    before = str(step.module.graph)
    for cut in (cut_by_tags, cut_by_torch):
        forward, backward = cut(step)
        assert len(forward.graph.find_nodes(op="placeholder")) == 3
        assert any(n.name == "tangents_1" for n in backward.graph.nodes)
    assert str(step.module.graph) == before
    again = copy_of(step.module)
    assert str(again.graph) == before
    assert all(n.meta for n in again.graph.nodes if n.op == "call_function")


def test_kernels_are_named_after_marked_nodes(step: JointStep) -> None:
    marked = step.of(copy_of(step.module))
    for node in marked.module.graph.nodes:
        mark(node, f"my {node.name}")
    forward, backward = cut_by_torch(marked)
    found = kernels_of(forward, backward=False)
    assert found.inputs[0] == "primals_1"
    product = next(k for k in found.kernels if any(b.node == "my addmm" for b in k.makes))
    assert product.external
    assert [b.size_bytes for b in product.makes] == [4 * 16 * 4]
    assert set(product.reads) == {"primals_1", "primals_2", "primals_3"}
    made = {b.name for k in found.kernels for b in k.makes} | set(found.inputs)
    assert set(found.outputs) <= made
    assert all(set(k.reads) <= made for k in found.kernels)
    assert kernels_of(backward, backward=True).kernels


def test_settings_with_a_partitioner_are_copied_and_written_down() -> None:
    one = Partitioner(cut_by_torch, "key")
    assert copy.deepcopy(one) is one
    assert one.uuid() == f"key torch {torch.__version__}"
    assert Partitioner(cut_by_torch).uuid() is None
    assert pickle.dumps(one) == pickle.dumps(Partitioner(cut_by_tags, "key"))
    assert pickle.dumps(Partitioner(cut_by_torch)) != pickle.dumps(Partitioner(cut_by_torch))
    assert not draws_outside()
    with torch._inductor.config.patch(fallback_random=True):
        assert draws_outside()
