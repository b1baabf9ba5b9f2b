"""What is private of Dynamo and Inductor: each name does what it is taken for, on this torch."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch._inductor.codegen import cpp
from torch._inductor.codegen.cpp import CppVecKernel
from torch._inductor.scheduler import SchedulerNode
from torch._inductor.virtualized import V
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from benchmarks.stubs import stubs
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.annotations import noted
from planner.graphs.torch_api.inductor import code_lines
from planner.graphs.torch_api.inductor.compiler import (
    compiled_by,
    joint_step,
    joint_step_with_inputs,
)
from planner.graphs.torch_api.inductor.inductor_kernels import MARK, mark
from planner.graphs.torch_api.inductor.near_fusions import keep_apart, near_fusions
from planner.graphs.torch_api.inductor.partitioner import (
    Halves,
    JointStep,
    Partitioner,
    copy_of,
    cut_by_tags,
    cut_by_torch,
    draws_outside,
)
from planner.graphs.torch_api.inductor.quick_strides import factor_of, quick_strides
from planner.graphs.torch_api.inductor.scheduler import kernels_of
from planner.graphs.torch_api.inductor.whole_traces import plain_errors
from planner.graphs.torch_api.inductor.without_code import without_code
from planner.graphs.torch_api.patches import patching

LOGGER = logging.getLogger(__name__)


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


def test_placeholders_are_known_by_the_tensors_that_they_stand_for() -> None:
    model, x = nn.Linear(8, 16), torch.randn(4, 8)
    found = joint_step_with_inputs(loss, model, x)
    assert found is not None
    step, given = found
    own = {id(model.weight), id(model.bias), id(x)}
    assert {id(t) for t in given} == own
    nodes = step.module.graph.find_nodes(op="placeholder")[: len(given)]
    for place, (node, tensor) in enumerate(zip(nodes, given, strict=True)):
        assert node.meta["val"].shape == tensor.shape
        assert (place in step.static) == (tensor is not x)


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
    found, backward = kernels_of(marked, cut_by_torch(marked))
    assert found.inputs[0] == "primals_1"
    product = next(k for k in found.kernels if any(b.node == "my addmm" for b in k.makes))
    assert product.external
    assert [b.size_bytes for b in product.makes] == [4 * 16 * 4]
    assert set(product.reads) == {"primals_1", "primals_2", "primals_3"}
    made = {b.name for k in found.kernels for b in k.makes} | set(found.inputs)
    assert set(found.outputs) <= made
    assert all(set(k.reads) <= made for k in found.kernels)
    assert backward.kernels


class Strided(nn.Module):
    """Convolutions, which Inductor lays out otherwise, buffers that are written, sums over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.last(self.layers(x)), 0.1).softmax(1)


class Attending(nn.Module):
    """Attention, a kernel of several results; saved values that backward may write into."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.before(x.flatten(2).mT).view(2, 144, 3, 2, 8).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.after(found.transpose(1, 2).flatten(2))
        return mixed.sigmoid()


class Gathering(nn.Module):
    """What is read inside a mask or at an index, sums into rows, loops that share an outer one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.norm = nn.Embedding(5, 12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(self.norm(x), (1, 3)).relu()
        mixed = torch.cat([padded.softmax(-1), padded.amax(-1, keepdim=True).exp()], -1)
        rows = self.rows((x > 0).sum(1)[:, :4])
        return mixed[..., 1:13] * rows


class CutOtherwise(nn.Module):
    """Loops with one around them, one of which Inductor cuts otherwise into vectors: it makes
    several kernels of them, and takes back that what is between them is not in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(12, 32)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.before(x.flatten(0, 2)[:32])
        return nn.functional.gumbel_softmax(rows.mT.contiguous(), 0.5)


@pytest.mark.parametrize(
    ("model", "channels", "cut"),
    [
        (CutOtherwise(), 4, cut_by_torch),
        (Strided(), 3, cut_by_torch),
        (Strided(), 3, cut_by_tags),
        (Attending(), 16, cut_by_tags),
        (Gathering(), 4, cut_by_torch),
        (Gathering(), 4, cut_by_tags),
    ],
)
def test_what_is_compiled_is_what_was_asked_for(
    model: nn.Module, channels: int, cut: Callable[[JointStep], Halves]
) -> None:
    x = torch.randn(2, channels, 12, 12)
    asked, compiled = [], []

    def cut_and_ask(step: JointStep) -> Halves:
        for node in step.module.graph.nodes:
            mark(node, node.name)
        halves = cut(step)
        asked.append(kernels_of(step, halves))
        return halves

    function = compiled_by(loss, Partitioner(cut_and_ask), lambda *told: compiled.append(told))
    torch._dynamo.reset()
    with stubs():
        function(model, x).backward()
    assert asked == compiled
    assert len(asked) == 1
    assert len(asked[0][0].kernels) > 2


def test_results_lie_over_inputs_that_nobody_needs(step: JointStep) -> None:
    forward, backward = kernels_of(step, cut_by_torch(step))
    taken = {name: size for line in forward.code for name, size in line.takes}
    assert forward.outputs[0] in taken
    assert sum(taken.values()) <= 2 * 4 * 16 * 4 + 16  # the product, what is kept, the sum, a seed
    given = [name for half in (forward, backward) for line in half.code for name in line.gives]
    assert len(given) == len(set(given)), "nothing is given back twice"
    calls = [line.calls for line in backward.code if line.calls is not None]
    assert len(calls) == sum(k.external for k in backward.kernels)


def test_memory_that_cannot_be_seen_is_refused(
    step: JointStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_lines, "AllocateLine", type(None))
    with pytest.raises(CaptureError, match="where its code does not say so"):
        kernels_of(step, cut_by_torch(step))


def test_a_step_that_logs_is_traced_whole() -> None:
    def talking(x: Tensor) -> Tensor:
        LOGGER.warning("left out of what is compiled")
        return x.square().sum()

    assert joint_step(talking, torch.ones(2, requires_grad=True)) is not None


def test_what_is_compiled_may_be_refused() -> None:
    def refuse(*told: object) -> None:
        raise CaptureError("too much")

    function = compiled_by(loss, Partitioner(cut_by_torch), refuse)
    torch._dynamo.reset()
    with pytest.raises(CaptureError, match="too much"), plain_errors():
        function(nn.Linear(8, 16), torch.randn(4, 8))


def test_settings_with_a_partitioner_are_copied_and_nothing_is_cached() -> None:
    one = Partitioner(cut_by_torch)
    assert copy.deepcopy(one) is one
    assert one.uuid() is None
    assert pickle.dumps(one) != pickle.dumps(Partitioner(cut_by_torch))
    assert not draws_outside()
    with torch._inductor.config.patch(fallback_random=True):
        assert draws_outside()


def marked_step(model: nn.Module, x: Tensor) -> JointStep:
    found = joint_step(loss, model, x)
    assert found is not None
    marked = found.of(copy_of(found.module))
    for node in marked.module.graph.nodes:
        mark(node, node.name)
    return marked


def test_layouts_are_those_that_a_kernel_outside_is_handed() -> None:
    marked = marked_step(Strided(), torch.randn(2, 3, 12, 12))
    forward, backward = kernels_of(marked, cut_by_torch(marked))
    (image, strides), (weight, _), *_ = next(k for k in forward.kernels if k.external).layouts
    assert (image, weight) == ((2, 3, 12, 12), (16, 3, 3, 3))
    assert strides == (3 * 12 * 12, 1, 3 * 12, 3), "channels last, as Inductor has them"
    assert all(k.layouts == () for k in forward.kernels if not k.external)
    # the gradient that is laid out for a convolution's backward is the value of a node
    handed = {name for k in backward.kernels if k.external for name in k.reads}
    made = [b for k in backward.kernels if not k.external for b in k.makes if b.name in handed]
    large = [b for b in made if b.size_bytes >= 4 * 2 * 8 * 8 * 8]
    assert large
    assert all(b.node is not None for b in large)


def test_bodies_are_left_out_in_the_thread_that_asks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(SchedulerNode, "codegen", lambda node, _: written.append(node))

    def write() -> None:
        with V.set_kernel_handler(CppVecKernel.__new__(CppVecKernel)):
            SchedulerNode.codegen(cast(SchedulerNode, "a node"), ())

    with patching() as patches:
        without_code(patches)
        write()
        assert written == []
        other = threading.Thread(target=write)
        other.start()
        other.join()
        assert written == ["a node"]
    write()
    assert written == ["a node"] * 2


class Joined(nn.Module):
    """A result that goes on, and beside one of its shape into a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.silu(self.first(x)) + 1
        small = nn.functional.avg_pool2d(wide, 2)
        again = nn.functional.interpolate(small, scale_factor=2.0, mode="nearest")
        made: torch.Tensor = self.last(torch.cat((wide, again), dim=1))
        return made


def test_a_part_of_a_concatenation_is_not_taken_for_what_it_is_concatenated_with() -> None:
    marked = marked_step(Joined(), torch.randn(2, 4, 16, 16))
    forward, _ = kernels_of(marked, cut_by_torch(marked))
    made = [b.node for k in forward.kernels for b in k.makes]
    assert [made.count(n) for n in ("add_1", "_unsafe_index", "cat")] == [1, 1, 1]
    assert made[made.index("add_1") + 1] is None  # its copy in the concatenation


def test_what_lies_far_apart_is_not_fused_in_a_marked_graph(step: JointStep) -> None:
    module = copy_of(step.module)
    usual, node = V.choices, next(n for n in module.graph.nodes if n.op == "call_function")
    here, there = (SimpleNamespace(min_order=n, max_order=n) for n in (0, 9))
    with near_fusions(module):
        assert type(V.choices) is type(usual)
    keep_apart(node)
    assert noted(node, MARK) is None
    with near_fusions(module):
        assert isinstance(V.choices, type(usual))
        assert not V.choices.can_fuse_horizontal(None, here, there, 10**9)  # type: ignore[arg-type]
    assert type(V.choices) is type(usual)


def test_a_step_is_cut_as_if_nodes_were_checkpointed(step: JointStep) -> None:
    inside = {n.name: 0 for n in step.module.graph.nodes if n.meta.get("nn_module_stack")}
    usual, made = (cut_by_torch(step, checkpointed=found) for found in (None, inside))
    assert inside
    again = {n.target for n in made[1].graph.nodes} - {n.target for n in usual[1].graph.nodes}
    assert torch.ops.aten.addmm.default in again


def test_strides_are_those_of_inductor_and_those_of_sums_are_not_simplified() -> None:
    x, y, s = sympy.symbols("x0 x1 s0", integer=True, nonnegative=True)
    sums = [x, y, sympy.Integer(3), 8 * x + y, 64 * (8 * x + y) + x, s * y + 2 * x, x - x // 1]
    sums += [4 * x + ModularIndexing(y, 2, 8), -3 * x + FloorDiv(y, 16) * s, 2 * (x + 3) - 2 * x]
    others = [s * x, FloorDiv(x, 4) + x, ModularIndexing(x, 1, 16), x * y, x**2, x * s + x]
    usual: Any = vars(cpp)["stride_at_vec_range"]
    for index in (*sums, *others):
        assert factor_of(x, index) in ({usual(index, x)} if index in sums else {None})
    asked: list[object] = []

    def noted(*of: Any) -> Any:
        asked.append(of)
        return usual(*of)

    def stride(*of: Any) -> Any:
        return vars(cpp)["stride_at_vec_range"](*of)

    with patching() as patches:
        patches.attribute(cpp, "stride_at_vec_range", noted)
        quick_strides(patches)
        for index in (*sums, *others):
            for length in (None, 8, 16):
                assert stride(index, x, length) == usual(index, x, length)
        assert len(asked) == 3 * len(others)
        other = threading.Thread(target=stride, args=(8 * x, x))
        other.start()
        other.join()
        assert asked[-1] == (8 * x, x, None)
