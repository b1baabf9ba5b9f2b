"""What a planned model notices before it runs anything."""

from __future__ import annotations

import copy
import enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner import PlanMismatch
from tests.by_default import slow_but
from tests.scenes import DEEP, LOGITS, SCENES, Apply, mlp
from tests.training import Scene, planned


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _wider(model: nn.Module) -> Tensor:
    return torch.randn(128, 16)


def _transposed(model: nn.Module) -> Tensor:
    return torch.randn(16, 64).t()


def _double(model: nn.Module) -> Tensor:
    return torch.randn(64, 16, dtype=torch.float64)


def _requiring(model: nn.Module) -> Tensor:
    return torch.randn(64, 16, requires_grad=True)


def _evaluating(model: nn.Module) -> Tensor:
    model.body[1].eval()  # type: ignore[index, union-attr]
    return torch.randn(64, 16)


def _freezing(model: nn.Module) -> Tensor:
    model.body[0][0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    return torch.randn(64, 16)


CHANGES = [
    (_wider, "argument 0 has 128 rows, the plan serves up to 64"),
    (_transposed, r"strides \[1, 64\] instead of \[16, 1\]"),
    (_double, r"float64\[64, 16\]"),
    (_requiring, "requires_grad True instead of False"),
    (_evaluating, r"mode of module 'body\.1'"),
    (_freezing, r"parameter 'body\.0\.0\.weight'"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_another_call_is_noticed(change: Any, words: str) -> None:
    patched = planned(DEEP)
    call = change(patched)
    with pytest.raises(PlanMismatch, match=words):
        patched(call)


@pytest.mark.parametrize("change", [_wider, _transposed, _requiring, _evaluating, _freezing])
@pytest.mark.parametrize("choice", slow_but({"replan"}, ["plain", "replan"]))
def test_another_call_runs_as_chosen(change: Any, choice: str) -> None:
    def run(model: nn.Module) -> list[Tensor | None]:
        torch.manual_seed(6)
        call = change(model)
        model(call).backward()
        return [call.grad, *(p.grad for p in model.parameters()), *model.buffers()]

    pairs = zip(run(DEEP.model()), run(planned(DEEP, on_mismatch=choice)), strict=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


def test_autocast_is_noticed() -> None:
    patched = planned(DEEP)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(PlanMismatch, match="autocast is bfloat16, planned for off"),
    ):
        patched(DEEP.call())
    scene = SCENES["autocast"]
    with pytest.raises(PlanMismatch, match=r"autocast is off, planned for bfloat16"):
        planned(scene)(scene.call())


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = mlp()

    def forward(self, x: Tensor, y: Tensor, z: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return (self.a(x) * y * z).mean()


def test_arguments_may_come_by_position_or_name() -> None:
    scene = Scene(Weighted, lambda: {"x": torch.randn(64, 16), "y": torch.ones(16), "z": 2.0})
    patched = planned(scene)
    x, y = torch.randn(64, 16), torch.ones(16)
    calls = [patched(x=x, y=y, z=2.0), patched(z=2.0, y=y, x=x), patched(x, y=y, z=2.0)]
    calls += [patched(x, y, 2.0), patched(x, y, 2.0, None), patched(x, y, z=2.0, mask=None)]
    assert len({value.item() for value in calls}) == 1
    other = planned(Scene(Weighted, lambda: (torch.randn(64, 16), torch.ones(16), 1.0)))
    assert torch.equal(other(x, y), other(x, y, 1.0))
    for args, kwargs, said in (
        ((x, y, 2.0, y), {}, "argument 'mask' is new"),
        ((x,), {"z": 2.0}, "argument 'y' is missing"),
        ((x, y), {"x": x, "z": 2.0}, "another nesting or order"),
    ):
        with pytest.raises(PlanMismatch, match=said):
            patched(*args, **kwargs)
    with pytest.raises(PlanMismatch, match=r"argument 'z' is 3\.0, planned for 2\.0"):
        patched(x=x, y=y, z=3.0)


def test_a_branch_that_goes_another_way_is_run() -> None:
    def run(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        h = m.a(x)
        if not mask.all():
            h = h.masked_fill(mask[:, None] == 0, 0.0)
        return h.square().mean()

    scene = Scene(
        lambda: Apply(run, a=mlp()),
        lambda: (torch.randn(64, 16), torch.ones(64, dtype=torch.long)),
    )
    patched = planned(scene)
    x, ones = scene.call()
    patched(x, ones)
    padded = ones.clone()
    padded[3] = 0
    assert torch.equal(patched(x, padded), scene.model()(x, padded))
    assert torch.equal(patched(x, ones), scene.model()(x, ones))


def test_another_model_is_refused() -> None:
    plan = LOGITS.plan(LOGITS.model())
    with pytest.raises(PlanMismatch, match=r"parameter '.*' is \[\[?\d+"):
        plan.apply(nn.Sequential(mlp(8), mlp(8)))
    other = LOGITS.model()
    other[1][1] = nn.ReLU()  # type: ignore[index, operator]
    with pytest.raises(PlanMismatch, match="a submodule is a ReLU, planned was a GELU"):
        plan.apply(other)
    gelu, relu = (
        Scene(lambda f=f: Apply(lambda m, x: f(m.a(x)), a=mlp()), LOGITS.inputs)
        for f in (F.gelu, F.relu)
    )
    with pytest.raises(PlanMismatch, match=r"is a aten\.relu\.default.*a aten\.gelu\.default"):
        gelu.plan(gelu.model()).apply(relu.model())
    with pytest.raises(PlanMismatch, match=r"mode of module"):
        plan.apply(LOGITS.model().eval())


# What the traced code read of the model


def _pieces() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = F.linear(m.a(x), m.b.weight) + F.linear(x, m.c.weight)
        return m.act(m.slope(m.drop(h)) * m.mask * m.scale).square().mean()

    model = Apply(
        run,
        a=nn.Linear(16, 16),
        b=nn.Linear(16, 16),
        c=nn.Linear(16, 16),
        drop=nn.Dropout(0.5),
        slope=nn.LeakyReLU(0.1),
    )
    model.c.weight = model.a.weight  # type: ignore[union-attr]
    model.act, model.scale, model.mask, model.unread = F.gelu, 2.0, torch.ones(16), 1  # type: ignore[assignment]
    return model


PIECES = Scene(_pieces, lambda: torch.randn(64, 16))


def _tie_otherwise(m: Any) -> None:
    m.c.weight = m.b.weight


def _lay_otherwise(m: Any) -> None:
    m.b.weight = nn.Parameter(torch.randn(16, 16).t())


def _unplug(m: Any) -> None:
    m.b.weight = nn.Parameter(torch.empty(16, 16, device="meta"))


def _hook(m: Any) -> None:
    m.drop.register_forward_hook(lambda module, args, out: out * 0)


def _replace_forward(m: Any) -> None:
    m.drop.forward = lambda x: x


ALTERED = [
    (_tie_otherwise, "'c.weight' is now tied to 'b.weight', and was tied to 'a.weight'"),
    (_lay_otherwise, r"'b.weight' has strides \[1, 16\] on cpu, and had strides \[16, 1\]"),
    (_unplug, r"'b.weight' has strides \[16, 1\] on meta"),
    (_hook, "hooks or the forward of submodule 'drop' changed"),
    (_replace_forward, "hooks or the forward of submodule 'drop' changed"),
    (lambda m: setattr(m, "act", F.relu), "'act' of the model is relu, and was gelu"),
    (lambda m: setattr(m.drop, "p", 0.0), "'p' of submodule 'drop' is 0.0, and was 0.5"),
]
FOLLOWED = [
    lambda m: setattr(m.drop, "p", 0.1),
    lambda m: setattr(m, "slope", nn.LeakyReLU(0.2)),
    lambda m: setattr(m, "scale", 3.0),
    lambda m: setattr(m, "mask", torch.zeros(16)),
]


@pytest.mark.parametrize(("alter", "words"), ALTERED)
def test_a_model_altered_after_the_plan_is_noticed(alter: Any, words: str) -> None:
    patched = planned(PIECES)
    patched(PIECES.call()).backward()
    alter(patched)
    with pytest.raises(PlanMismatch, match=words):
        patched(PIECES.call())


@pytest.mark.parametrize("alter", FOLLOWED)
def test_another_constant_is_followed(alter: Any) -> None:
    def run(model: nn.Module) -> list[Tensor | None]:
        torch.manual_seed(6)
        model(PIECES.call()).backward()
        alter(model)
        model(PIECES.call()).backward()
        return [p.grad for p in model.parameters()]

    pairs = zip(run(PIECES.model()), run(planned(PIECES)), strict=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


class Kind(enum.Enum):
    LOCAL = 1
    GLOBAL = 3


def test_an_attribute_named_as_a_method_is_read_like_any_other() -> None:
    def build() -> nn.Module:
        model = Apply(lambda m, x: (m.a(x) * m.type.value * len(m.half)).mean(), a=mlp())
        model.type, model.half = Kind.LOCAL, [1]  # type: ignore[method-assign, assignment]
        return model

    scene = Scene(build, lambda: torch.randn(64, 16))
    plain, patched = scene.model(), planned(scene)
    for each in (plain, patched):
        each(scene.call())
        each.type, each.half = Kind.GLOBAL, [1, 2]  # type: ignore[method-assign, assignment]
    assert torch.equal(plain(scene.call()), patched(scene.call()))


def test_what_the_traced_code_did_not_read_may_change() -> None:
    patched = planned(PIECES)
    patched.unread, patched.mask = 2, torch.ones(16)  # type: ignore[assignment]
    patched.register_forward_hook(lambda module, args, out: 2 * out)
    torch.manual_seed(5)
    doubled = patched(PIECES.call())
    torch.manual_seed(5)
    assert torch.equal(doubled, 2 * PIECES.model()(PIECES.call()))
    copied = copy.deepcopy(patched)
    copied(PIECES.call()).backward()


@pytest.mark.parametrize("argument", [{1, 2}, object()])
def test_an_argument_that_no_plan_knows_is_a_mismatch(argument: Any) -> None:
    scene = Scene(
        lambda: Apply(lambda m, x, y=None: m.a(x).mean(), a=mlp()),
        lambda: {"x": torch.randn(64, 16), "y": None},
    )
    with pytest.raises(PlanMismatch, match=f"an argument is a {type(argument).__name__}"):
        planned(scene)(x=torch.randn(64, 16), y=argument)
    planned(scene, on_mismatch="plain")(x=torch.randn(64, 16), y=argument)


# What happens between forward and backward


def _sigmoid_and_mask(m: Any, x: Tensor) -> Any:
    h = torch.sigmoid(m.a(x))
    mask = (x > 0).float()
    return (m.b(h) * mask).mean(), h, mask


@pytest.mark.parametrize("index", [1, 2])
def test_an_output_changed_before_backward_is_noticed_as_in_eager_mode(index: int) -> None:
    scene = Scene(lambda: Apply(_sigmoid_and_mask, a=mlp(), b=mlp()), lambda: torch.randn(64, 16))
    for model, words in (
        (scene.model(), "modified by an inplace"),
        (planned(scene, "plain"), "changed in place"),
    ):
        loss, *others = model(scene.call())
        others[index - 1].detach().zero_()
        with pytest.raises(RuntimeError, match=words):
            loss.backward()


@pytest.mark.parametrize("method", slow_but({"recompute_all"}, ["plain", "recompute_all"]))
def test_two_forward_passes_before_one_backward(method: str) -> None:
    def run(model: nn.Module) -> list[Any]:
        torch.manual_seed(7)
        (model(torch.randn(64, 16)) - 3 * model(torch.randn(64, 16))).backward()
        return [*(p.grad for p in model.parameters()), *model.buffers()]

    pairs = zip(run(DEEP.model()), run(planned(DEEP, method)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
