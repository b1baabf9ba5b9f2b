"""Under autocast a planned step rounds where the plain one does; backward is outside it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner import PlanMismatch
from tests.scenes import SCENES, Apply, mlp
from tests.training import Scene, assert_same, planned, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _attention(*, p: float, causal: bool = False, mask: str = "") -> nn.Module:
    masks = {
        "bool": lambda: torch.ones(16, 16).tril().bool(),
        "float": lambda: torch.linspace(-1, 1, 256).view(16, 16),
    }

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(4, 16, 2, 16).transpose(1, 2) for f in (m.q, m.k, m.v))
        given = masks[mask]() if mask else None
        out = F.scaled_dot_product_attention(q, k, v, given, dropout_p=p, is_causal=causal)
        return out.float().square().mean()

    return Apply(run, **{name: nn.Linear(32, 32) for name in "qkv"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind",
    [
        {"p": 0.0},
        {"p": 0.1},
        {"p": 0.15, "causal": True},
        {"p": 0.1, "mask": "bool"},
        {"p": 0.1, "mask": "float"},
    ],
    ids=str,
)
def test_attention_equals_eager(kind: dict[str, Any], dtype: torch.dtype) -> None:
    around = functools.partial(torch.autocast, "cpu", dtype)
    make = functools.partial(_attention, **kind)
    scene = Scene(make, lambda: torch.randn(64, 32), around=around)
    assert_same(train(scene, scene.model()), train(scene, planned(scene)))


def test_backward_inside_the_block_is_refused_where_it_would_differ() -> None:
    around = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    scene = Scene(lambda: _attention(p=0.1), lambda: torch.randn(64, 32), around=around)
    with scene.around():
        loss = planned(scene)(scene.call())
        with pytest.raises(PlanMismatch, match="leave the block first"):
            loss.backward()


def test_backward_inside_the_block_runs_where_it_would_not() -> None:
    scene = SCENES["autocast"]

    def gradients(model: nn.Module) -> list[Tensor]:
        with scene.around():
            model(scene.call()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    found = zip(gradients(scene.model()), gradients(planned(scene)), strict=True)
    assert all(torch.equal(a, b) for a, b in found)


def test_an_operator_that_casts_by_itself_in_backward_does_so_in_a_plan() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu")
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return grads[0] @ weight.t(), x.t() @ grads[0]

    def make() -> nn.Module:
        return Apply(
            lambda m, x: Product.apply(m.a(x), m.b.weight).float().square().mean(),
            a=mlp(),
            b=nn.Linear(16, 16),
        )

    around = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    scene = Scene(make, lambda: torch.randn(64, 16), around=around)
    assert_same(train(scene, scene.model()), train(scene, planned(scene)))


def _twice_outside(m: Any, x: Tensor) -> Tensor:
    return m.a(m.a(m.a(x))).float().square().mean()


def _twice_inside(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = m.a(m.a(x))
    with torch.autocast("cpu", torch.bfloat16):
        x = m.a(x)
        with torch.autocast("cpu", enabled=False):
            x = x.float() * 2
        return m.a(x).float().square().mean()


def _convolved_twice(m: Any, x: Tensor) -> Tensor:
    x = x.view(4, 4, 16, 8)
    return (m.c(m.c(x)) @ m.b.weight + m.b(x)).float().square().mean()


@pytest.mark.parametrize("run", [_twice_outside, _twice_inside, _convolved_twice])
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_a_weight_used_twice_is_cast_as_often_as_in_eager_mode(
    run: Any, *, on: bool, cached: bool
) -> None:
    around = functools.partial(
        torch.autocast, "cpu", torch.bfloat16, enabled=on, cache_enabled=cached
    )

    def make() -> nn.Module:
        parts = {"a": nn.Linear(32, 32), "b": nn.Linear(8, 8), "c": nn.Conv2d(4, 4, 3, padding=1)}
        return Apply(run, **parts)

    scene = Scene(make, lambda: torch.randn(64, 32), around=around)
    assert_same(train(scene, scene.model()), train(scene, planned(scene)))


def _first_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        known = m.a(x)
    return (m.a(m.a(x)) + known).float().square().mean()


def _without_gradients_between(m: Any, x: Tensor) -> Tensor:
    made = m.a(x)
    with torch.no_grad():
        known = m.a(x)
    return (m.a(made) + known).float().square().mean()


def _switched_inside(m: Any, x: Tensor) -> Tensor:
    made = m.a(m.a(x))
    for kept in (False, True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            made = m.a(m.a(made))
    return m.a(made.float()).float().square().mean()


def _forgotten_between(m: Any, x: Tensor) -> Tensor:
    made = m.a(m.a(x))
    torch.clear_autocast_cache()
    return m.a(m.a(made)).float().square().mean()


@pytest.mark.parametrize(
    "run",
    [_first_without_gradients, _without_gradients_between, _switched_inside, _forgotten_between],
)
@pytest.mark.parametrize("outside", [True, False, None], ids=["kept", "not kept", "no block"])
def test_casts_are_kept_as_the_code_has_it(run: Any, *, outside: bool | None) -> None:
    around = functools.partial(
        torch.autocast, "cpu", torch.bfloat16, enabled=outside is not None,
        cache_enabled=bool(outside),
    )  # fmt: skip
    scene = Scene(
        lambda: Apply(run, a=nn.Linear(32, 32)), lambda: torch.randn(16, 32), around=around
    )
    assert_same(train(scene, scene.model()), train(scene, planned(scene)))


@pytest.mark.parametrize("kept", [True, False])
def test_a_call_that_keeps_casts_otherwise_is_noticed(*, kept: bool) -> None:
    around = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    make = lambda: Apply(_forgotten_between, a=nn.Linear(32, 32))  # noqa: E731
    scene = Scene(
        make, lambda: torch.randn(16, 32), around=functools.partial(around, cache_enabled=kept)
    )
    model = planned(scene)
    with (
        around(cache_enabled=not kept),
        pytest.raises(PlanMismatch, match=f"cache_enabled={not kept}, planned for {kept}"),
    ):
        model(scene.call())
