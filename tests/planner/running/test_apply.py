"""A planned model is the user's own in every way but what it runs."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planner
from planner import PlanMismatch, PlannerWarning
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.plans import Plan
from tests.scenes import DEEP, LOGITS, SCENES, Apply, mlp
from tests.training import Scene, assert_same, measured_peak, planned, resident_bytes, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# What it is


def test_it_shares_everything_with_the_model_given() -> None:
    model = DEEP.model()
    patched = DEEP.plan(model, "recompute_all").apply(model)
    assert isinstance(patched, type(model))
    assert type(patched).__name__ == type(model).__name__
    assert type(model) is Apply
    assert all(a is b for a, b in zip(patched.parameters(), model.parameters(), strict=True))
    assert patched.state_dict().keys() == model.state_dict().keys()
    assert repr(patched) == repr(model)


def test_a_plan_replaces_the_one_a_model_runs() -> None:
    model = DEEP.model()
    first, second = DEEP.plan(model, "plain"), DEEP.plan(model, "recompute_all")
    again = second.apply(first.apply(model))
    assert type(again).__bases__ == (Apply,)
    assert_same(train(DEEP, DEEP.model()), train(DEEP, again))
    budget = second.budget_bytes
    assert planner.fit(again, budget, inputs=DEEP.call(), optimizer=None).graph == first.graph
    with pytest.raises(PlanMismatch, match="submodule '0' already runs a plan"):
        planner.fit(nn.Sequential(again), budget, inputs=DEEP.call())


def test_state_dicts_go_both_ways() -> None:
    trained, fresh = planned(DEEP), planned(DEEP)
    train(DEEP, trained, steps=3)
    with torch.no_grad():
        for p in trained.parameters():
            p.sub_(0.1 * p.grad)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    for model in (trained, fresh):
        model.zero_grad(set_to_none=True)
    assert_same(train(DEEP, trained), train(DEEP, fresh))


def test_a_deep_copy_is_independent_and_runs_the_plan() -> None:
    patched = planned(DEEP, "least")
    other = copy.deepcopy(patched)
    train(DEEP, other)
    assert all(p.grad is None for p in patched.parameters())
    assert_same(train(DEEP, DEEP.model()), train(DEEP, patched))
    peak = DEEP.plan(DEEP.model(), "least").peak_bytes
    assert measured_peak(DEEP, copy.deepcopy(patched)) <= peak


def test_a_shallow_copy_shares_parameters() -> None:
    patched = planned(DEEP)
    other = copy.copy(patched)
    train(DEEP, other)
    assert all(a is b for a, b in zip(patched.parameters(), other.parameters(), strict=True))
    assert all(p.grad is not None for p in patched.parameters())


def test_it_is_not_pickled_whole() -> None:
    with pytest.raises(pickle.PicklingError, match="state_dict"):
        torch.save(planned(DEEP), io.BytesIO())


def test_a_forward_on_the_instance_is_refused() -> None:
    model = DEEP.model()
    plan = DEEP.plan(model)
    model.forward = lambda x: x.sum()  # type: ignore[method-assign]
    with pytest.raises(PlanMismatch, match=r"model\.forward was replaced"):
        plan.apply(model)


# How it trains


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_trajectories_are_equal(optimizer: Any) -> None:
    def trajectory(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(5)
        steps = optimizer(model.parameters(), lr=0.05)
        losses = []
        for _ in range(5):
            steps.zero_grad()
            loss = model(torch.randn(64, 16))
            loss.backward()
            steps.step()
            losses.append(loss.detach())
        return [*losses, *model.state_dict().values()]

    pairs = zip(trajectory(DEEP.model()), trajectory(planned(DEEP)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_accumulate_within_the_budget() -> None:
    model = DEEP.model()
    plan = DEEP.plan(model, "least", accumulate=True)
    patched = plan.apply(model)
    call = DEEP.call()
    patched(call).backward()
    held = sum(p.grad.untyped_storage().nbytes() for p in model.parameters())  # type: ignore[union-attr]
    record = measure_peak(lambda: patched(call).backward())
    measured = resident_bytes(model, call) + held + record.peak_bytes
    assert measured <= plan.budget_bytes
    assert plan.peak_bytes == pytest.approx(measured, rel=0.02)
    assert_same(train(DEEP, DEEP.model(), steps=3), train(DEEP, planned(DEEP), steps=3))


@pytest.mark.parametrize("early", [True, False])
def test_hooks_run_once(early: bool) -> None:
    """Hooks of the model itself and of its parameters, registered before or after planning."""
    scene = SCENES["input_that_requires_grad"]

    def hooked(model: nn.Module) -> list[Tensor]:
        seen: list[Tensor] = []
        weight = next(model.parameters())
        weight.register_hook(lambda g: g * 2)
        weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        model.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        model.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
        model.register_full_backward_hook(lambda m, i, o: seen.append(o[0]))
        return seen

    def gradients(model: nn.Module) -> list[Tensor]:
        call = scene.call()
        model(call).backward()
        return [call.grad, *(p.grad for p in model.parameters())]

    plain, model = scene.model(), scene.model()
    expected = hooked(plain)
    if early:
        found = hooked(model)
    patched = scene.plan(model, "recompute_all").apply(model)
    if not early:
        found = hooked(patched)
    pairs = list(zip(gradients(plain), gradients(patched), strict=True))
    pairs += zip(expected, found, strict=True)
    assert len(expected) == 3
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("used", [0, 1])
def test_what_an_unused_output_alone_needs_gets_no_gradient(used: int) -> None:
    scene = Scene(
        lambda: Apply(lambda m, x: (m.b(m.a(x)), m.c(m.a(x))), a=mlp(), b=mlp(), c=mlp()),
        lambda: torch.randn(64, 16),
    )

    def run(model: nn.Module) -> list[Tensor | None]:
        model(scene.call())[used].square().sum().backward()
        return [p.grad for p in model.parameters()]

    plain = run(scene.model())
    with pytest.warns(PlannerWarning, match=rf"no gradient arrived at 'output\[{1 - used}\]'"):
        patched = run(planned(scene))
    assert sum(g is None for g in plain) == 4
    assert all(
        a is b is None or torch.equal(a, b)  # type: ignore[arg-type]
        for a, b in zip(plain, patched, strict=True)
    )


def test_two_forwards_before_their_backwards() -> None:
    def both(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(4)
        first, second = model(torch.randn(64, 16)), model(torch.randn(64, 16))
        second.sum().backward()
        first.square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    pairs = zip(both(LOGITS.model()), both(planned(LOGITS)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_gradients_the_original_runs() -> None:
    model, patched = DEEP.model().eval(), planned(DEEP)
    patched.eval()
    with torch.no_grad():
        assert torch.equal(model(DEEP.call()), patched(DEEP.call()))
        assert torch.equal(model(torch.ones(3, 16)), patched(torch.ones(3, 16)))


def test_a_loss_callable_is_inside() -> None:
    scene = SCENES["loss_callable_with_targets"]
    model = scene.model()
    patched = scene.plan(model).apply(model)
    call = scene.call()
    with torch.no_grad():
        without = patched(call, targets=scene.targets)
        assert torch.equal(patched(call), model(call))
    assert torch.equal(patched(call, targets=scene.targets), without)
    assert torch.equal(without, F.mse_loss(model(call), scene.targets))


@pytest.mark.parametrize("name", ["loss_callable_with_targets", "loss_callable_without_targets"])
@pytest.mark.parametrize("choice", ["error", "plain", "replan"])
def test_evaluating_without_targets_gives_the_output(name: str, choice: str) -> None:
    scene = SCENES[name]
    model = scene.model()
    patched = scene.plan(model).apply(model, on_mismatch=choice)
    patched.eval()
    assert torch.equal(patched(scene.call()), model(scene.call()))


@pytest.mark.parametrize("choice", ["error", "plain", "replan"])
def test_training_without_targets_is_a_mismatch(choice: str) -> None:
    patched = planned(SCENES["loss_callable_with_targets"], on_mismatch=choice)
    with pytest.raises(PlanMismatch, match="pass targets=; in eval mode"):
        patched(SCENES["loss_callable_with_targets"].call())


def test_targets_of_the_model_are_its_own() -> None:
    model = Apply(lambda m, x, targets: (m.a(x), F.mse_loss(m.a(x), targets)), a=mlp())
    call = {"x": torch.randn(64, 16), "targets": torch.ones(64, 16)}
    plan = planner.fit(model, "1GB", inputs=call, optimizer=None, loss=lambda out: out[1])
    assert torch.equal(plan.apply(model)(**call), model(**call)[1])


_RETURNED: dict[str, tuple[Any, set[str]]] = {
    "logits, loss": (lambda m, h: (h, h.square().mean()), {"output[1]"}),
    "a view, loss": (lambda m, h: (h[:, 1:], h.square().mean()), {"output[1]"}),
    "loss, logits": (lambda m, h: (h.square().mean(), h), {"output[0]"}),
    "named": (lambda m, h: {"h": m.b(h), "loss": h.square().mean()}, {"loss"}),
    "losses": (lambda m, h: {"a": h.square().mean(), "b": m.b(h).abs().mean()}, {"a", "b"}),
    "reconstruction": (lambda m, h: (m.b(h), h.square().mean()), {"output[0]", "output[1]"}),
    "scale": (lambda m, h: {"h": h, "scale": m.b[0].bias.sum().exp()}, {"h", "scale"}),
}


@pytest.mark.parametrize("name", _RETURNED)
def test_what_the_caller_may_differentiate(name: str) -> None:
    """What a scalar is made of is there to look at; the rest is summed by the caller."""
    how, wanted = _RETURNED[name]
    scene = Scene(
        lambda: Apply(lambda m, x: how(m, m.a(x)), a=mlp(), b=mlp()), lambda: torch.randn(64, 16)
    )

    def gradients(model: nn.Module) -> list[Tensor | None]:
        out = model(scene.call())
        parts = out if isinstance(out, dict) else {f"output[{i}]": x for i, x in enumerate(out)}
        sum(x.square().sum() for n, x in parts.items() if n in wanted).backward()  # type: ignore[union-attr]
        return [p.grad for p in model.parameters()]

    pairs = zip(gradients(scene.model()), gradients(planned(scene)), strict=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]
    tangents = sum(op.target == "tangent" for op in scene.plan(scene.model(), "plain").graph.ops)
    assert tangents == len(wanted)


def test_backward_twice_is_refused() -> None:
    loss = planned(DEEP)(DEEP.call())
    loss.backward()
    with pytest.raises(RuntimeError, match=r"second time|backward ran twice"):
        loss.backward()
    loss = planned(DEEP)(DEEP.call())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph is not supported"):
        loss.backward()


def test_second_derivatives_are_refused_at_once() -> None:
    model, call = LOGITS.model(), LOGITS.call().requires_grad_()
    patched = planner.fit(model, "1GB", inputs=call, optimizer=None).apply(model)
    with pytest.raises(PlanMismatch, match="cannot be differentiated twice: compute"):
        torch.autograd.grad(patched(call).sum(), call, create_graph=True)
    with pytest.raises(PlanMismatch, match="create_graph=True"):
        patched(call).sum().backward(create_graph=True)
    patched(call).sum().backward()


def test_a_gradient_beside_the_loss_is_refused() -> None:
    scene = Scene(
        lambda: Apply(lambda m, x: {"loss": m.a(x).mean(), "logits": m.a(x)}, a=mlp()),
        lambda: torch.randn(64, 16),
    )
    out = planned(scene)(scene.call())
    with pytest.raises(PlanMismatch, match="output 'logits'"):
        (out["loss"] + out["logits"].sum()).backward()


def test_a_plan_from_a_file_runs(tmp_path: Any) -> None:
    scene = SCENES["loss_callable_with_targets"]
    model = scene.model()
    plan = scene.plan(model, "recompute_all")
    plan.save(tmp_path / "plan.json")
    loaded: Plan = planner.load(tmp_path / "plan.json")
    with pytest.raises(PlanMismatch, match="loss"):
        loaded.apply(model)
    patched = loaded.apply(model, loss=scene.loss)
    assert_same(train(scene, scene.model()), train(scene, patched))


def test_the_same_step_gives_the_same_plan() -> None:
    calls = [planner.fit(DEEP.model(), "90%", inputs=DEEP.call(), device="cpu") for _ in range(2)]
    assert calls[0] == calls[1]


# Who else may wrap it


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_data_parallel_training_wraps_it() -> None:
    wrapped = nn.parallel.DistributedDataParallel(planned(DEEP))
    plain = nn.parallel.DistributedDataParallel(DEEP.model())
    assert_same(train(DEEP, plain), train(DEEP, wrapped))
