"""Batch norm is cuDNN's on a card wherever torch hands it to cuDNN, and a plan runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

import planner
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.trace import trace
from planner.graphs.host_memory import movable
from planner.graphs.torch_api.cuda.card import Card, card_of
from planner.graphs.torch_api.cuda.cudnn_batch_norm import batch_norm_of_cuda
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.patches import patching
from tests.graphs.torch_api.cuda.stand_ins import standing_in

aten = torch.ops.aten
A100 = card_of("sm_80")
CHOSEN, BACKWARD = "aten._batch_norm_with_update_functional.default", "aten.batch_norm_backward"
CUDNN, OWN = "aten.cudnn_batch_norm.default", "aten._native_batch_norm_legit_functional.default"
IMAGE = (4, 8, 5, 5)


class Normal(nn.Module):
    """Convolutions, and the normalization between them."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        convolution = lambda: nn.Conv2d(8, 8, 3, padding=1)  # noqa: E731
        self.layers = nn.Sequential(convolution(), make(), nn.ReLU(), convolution(), make())

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x).square().mean()
        return made


NORMS: dict[str, Callable[[], nn.Module]] = {
    "train": lambda: nn.BatchNorm2d(8),
    "evaluation": lambda: nn.BatchNorm2d(8).eval(),
    "without statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
}


def kernels(layer: nn.Module, x: Tensor, card: Card = A100) -> list[str]:
    joint = trace(nn.Sequential(layer, nn.Flatten(0)), arguments_of(x), loss=torch.mean, card=card)
    return [str(n.target) for n in joint.graph.nodes if "batch_norm" in str(n.target)]


@pytest.mark.parametrize(
    ("layer", "shape", "found"),
    [
        (nn.BatchNorm2d(8), IMAGE, CHOSEN),
        (nn.BatchNorm3d(8), (2, 8, 3, 3, 3), CHOSEN),
        (nn.BatchNorm1d(8), (4, 8, 5), CHOSEN),
        (nn.BatchNorm1d(8), (4, 8), OWN),
        (nn.BatchNorm1d(8), (880802, 8, 1), OWN),
        (nn.BatchNorm2d(8, affine=False), IMAGE, OWN),
        (NORMS["evaluation"](), IMAGE, CUDNN),
        (NORMS["evaluation"](), (65536, 8, 1, 1), "aten._native_batch_norm_legit_no_training"),
        (NORMS["without statistics"](), IMAGE, CUDNN),
    ],
)
def test_the_rules_of_torch_choose(layer: nn.Module, shape: tuple[int, ...], found: str) -> None:
    with torch.device("meta"):
        x = torch.zeros(shape)
    assert kernels(layer.to("meta"), x.requires_grad_())[0].startswith(found)


@pytest.mark.parametrize(
    ("of_batch", "of_weight", "found"),
    [
        (torch.float16, torch.float32, CHOSEN),
        (torch.float16, torch.float16, OWN),
        (torch.bfloat16, torch.bfloat16, OWN),
        (torch.float64, torch.float64, CHOSEN),
    ],
)
def test_types_choose_too(of_batch: torch.dtype, of_weight: torch.dtype, found: str) -> None:
    layer, x = nn.BatchNorm2d(8).to(of_weight), torch.zeros(IMAGE, dtype=of_batch)
    assert kernels(layer, x)[0] == found


def test_what_cudnn_is_not_asked_is_torchs_own() -> None:
    layer, x = nn.BatchNorm2d(8), torch.zeros(IMAGE)
    assert kernels(layer, x, card_of("gfx942"))[0] == OWN
    with torch.backends.cudnn.flags(enabled=False):
        assert kernels(layer, x)[0] == OWN


def test_statistics_are_in_single_precision_and_a_permuted_batch_is_laid_anew() -> None:
    x = torch.zeros(5, 4, 5, 8, dtype=torch.float16).permute(1, 3, 0, 2)
    joint = trace(nn.Sequential(nn.BatchNorm2d(8)), arguments_of(x), loss=torch.mean, card=A100)
    target = aten._batch_norm_with_update_functional.default
    (node,) = joint.graph.find_nodes(op="call_function", target=target)
    y, mean, scale, kept, *_ = node.meta["val"]
    assert (y.dtype, mean.dtype, scale.dtype) == (torch.float16, torch.float32, torch.float32)
    assert y.is_contiguous()
    assert node.args[0].meta["val"].is_contiguous()
    assert kept.numel() == 0


def test_a_card_is_asked_what_is_kept_for_the_largest_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[Any]()

    def kept(x: Tensor, train: bool) -> int:
        asked.append((list(x.shape), x.device.type, train))
        return 24

    cudnn = torch._C._BatchNormBackend.Cudnn
    monkeypatch.setattr(torch._C, "_select_batch_norm_backend", lambda *_: cudnn)
    monkeypatch.setattr(torch._C, "_get_cudnn_batch_norm_reserve_space_size", kept)
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3])
    image, mode = torch.zeros(IMAGE), FakeTensorMode(shape_env=ShapeEnv())
    rows = mode.from_tensor(image, symbolic_context=context).shape[0]
    with mode, patching() as patches:
        batch_norm_of_cuda(patches, None)
        x = torch.empty(rows, *IMAGE[1:], device="cuda")
        weight = torch.empty(8, device="cuda")
        made = aten._batch_norm_with_update_functional.default(x, *[weight] * 4, 0.1, 1e-5)
    assert not isinstance(rows, int)
    assert asked == [(list(IMAGE), "cuda", True)]
    assert made[3].shape == (24,)


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a CPU capture batch norm as a card does, and stand in for cuDNN's two kernels."""

    def run(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        made, mean, scale = aten.native_batch_norm.default(x, weight, *rest)
        if not rest[3]:
            mean = scale = weight.new_empty(0)
        return made, mean, scale, x.new_empty(0, dtype=torch.uint8)

    def run_backward(x: Tensor, gradient: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, eps, _ = rest
        made: tuple[Tensor, ...] = aten.native_batch_norm_backward.default(
            gradient, x, *given, True, eps, [True, True, True]
        )
        return made

    kernels = {"cudnn_batch_norm": run, "cudnn_batch_norm_backward": run_backward}
    with standing_in(kernels, batch_norm_of_cuda, A100, monkeypatch):
        yield


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("method", ["plain", "recompute_all"])
@pytest.mark.usefixtures("on_a_card")
def test_a_plan_runs_it(name: str, method: str) -> None:
    torch.manual_seed(0)
    eager = Normal(NORMS[name])
    model = copy.deepcopy(eager)
    x = torch.randn(IMAGE)
    plan = planner.fit(model, "1GB", inputs=x, optimizer=None, method=method)
    assert sum(op.target in {CHOSEN, CUDNN} for op in plan.graph.ops) == 2
    step = plan.apply(model)
    for batch in (x, x[:3]):
        losses = [m(batch) for m in (eager, step)]
        assert torch.equal(*losses)
        gradients = [
            torch.autograd.grad(loss, list(m.parameters()))
            for loss, m in zip(losses, (eager, model), strict=True)
        ]
        assert all(map(torch.equal, *gradients))
        assert all(map(torch.equal, eager.buffers(), model.buffers()))


@pytest.mark.usefixtures("on_a_card")
def test_run_again_it_leaves_running_statistics_and_does_not_look_at_them() -> None:
    torch.manual_seed(0)
    eager = Normal(NORMS["train"])
    model = copy.deepcopy(eager)
    x, y = torch.randn(2, *IMAGE)
    step = planner.fit(model, "1GB", inputs=x, optimizer=None, method="recompute_all").apply(model)
    for m in (eager, step):
        first, second = m(x), m(y)  # whose backward passes come after both updates
        first.backward()
        second.backward()
    assert all(map(torch.equal, eager.buffers(), model.buffers()))
    pairs = zip(eager.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs)


@pytest.mark.usefixtures("on_a_card")
def test_new_running_statistics_are_never_away() -> None:
    plan = planner.fit(Normal(NORMS["train"]), "1GB", inputs=torch.zeros(IMAGE), optimizer=None)
    ops = [op for op in plan.graph.ops if op.target == CHOSEN]
    away = movable(plan.graph)
    assert ops
    assert all(set(op.outputs[:3]) & away and not set(op.outputs[4:]) & away for op in ops)


def test_a_plan_says_what_was_assumed() -> None:
    model, x = Normal(NORMS["train"]), torch.zeros(IMAGE)
    plan = planner.fit(model, "4GB", inputs=x, device="A100-40GB", optimizer=None)
    assert "cuDNN keeps nothing of batch norm" in " ".join(str(plan).split())
    assert BACKWARD in {op.target.removesuffix(".default") for op in plan.graph.ops}
