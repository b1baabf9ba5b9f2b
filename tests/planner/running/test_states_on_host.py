"""An optimizer whose states wait on the host: the same bits, less memory, nothing lost."""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import planner
from planner.graphs import Kind
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.storages import storage_key
from planner.running.separable_step import require_separable
from planner.running.states_on_host import (
    bring_states_back,
    expect_states,
    is_offloaded,
    offload_states,
    storages_on_host,
)
from planner.solvers import Limits
from tests.by_default import slow_but

WIDTH, ROWS = 64, 32


def mean_square(out: Tensor) -> Tensor:
    return out.square().mean()


SAID: dict[str, Any] = {
    "loss": mean_square,
    "progress": "off",
    "limits": Limits(1.0),
}
HOST = {"states": True, "bytes_per_second": 4e9}
Maker = Callable[[list[Tensor]], Optimizer]


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(8)))


def batches(count: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, WIDTH, generator=made) for _ in range(count)]


def adamw(parameters: list[Tensor]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


MAKERS: dict[str, Maker] = {
    "adamw": adamw,
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def tight(optimizer: Any, share: float = 0.0, **more: Any) -> planner.Plan:
    """Plan within what the step holds with no state of the optimizer, and a share of them."""
    said = {**SAID, "inputs": batches(1)[0], "optimizer": optimizer, **more}
    plain = planner.fit(build(), "1GB", **said)
    held = sum(v.size_bytes for v in plain.graph.values if v.kind is Kind.OPTIMIZER)
    budget = int(plain.plain_peak_bytes - (0.6 - share) * held)
    return planner.fit(build(), budget, offload=HOST, **said)


def train(maker: Maker, plan: planner.Plan | None, steps: int = 3) -> tuple[nn.Module, Optimizer]:
    model = build()
    optimizer = maker(list(model.parameters()))
    if plan is not None:
        assert offload_states(optimizer, plan, model) is optimizer
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    for x in batches(steps):
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert len(calls) == steps  # a step in parts is one step to hooks
    return model, optimizer


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "name",
    ["momentum", *(pytest.param(n, marks=pytest.mark.slow) for n in MAKERS if n != "momentum")],
)
def test_the_same_training_and_the_same_states(name: str) -> None:
    plan = tight(MAKERS[name])
    assert plan.states is not None
    (one, plain), (other, moved) = train(MAKERS[name], None), train(MAKERS[name], plan)
    assert same(one, other)
    saved = io.BytesIO()
    torch.save(moved.state_dict(), saved)
    saved.seek(0)
    for found in (moved.state_dict(), torch.load(saved)):
        for number, states in plain.state_dict()["state"].items():
            assert all(torch.equal(v, found["state"][number][k]) for k, v in states.items())


def test_schedulers_and_scalers_come_before_or_after() -> None:
    plan, found = tight(MAKERS["fused"]), list[nn.Module]()
    for order in ("plain", "before", "after"):
        model = build()
        optimizer = MAKERS["fused"](list(model.parameters()))
        if order == "after":
            offload_states(optimizer, plan, model)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
        halving = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if order == "before":
            offload_states(optimizer, plan, model)
        for x in batches(3):
            optimizer.zero_grad(set_to_none=True)
            for part in x.chunk(2):  # accumulated
                scaler.scale(model(part).square().mean()).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            warm.step()
            halving.step()
        assert is_offloaded(optimizer) is (order != "plain")
        found.append(model)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_plan_that_is_made_within_a_step() -> None:
    """As in Lightning, whose steps are given closures; states come back when they are asked for."""
    plan, (one, _) = tight(adamw), train(adamw, None)
    model = build()
    optimizer = adamw(list(model.parameters()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    expect_states(optimizer)
    assert not is_offloaded(optimizer)
    for k, x in enumerate(batches(3)):

        def closure(x: Tensor = x, k: int = k) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = model(x).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            if k == 0:
                offload_states(optimizer, plan, model)
            return loss

        assert optimizer.step(closure) > 0
        scheduler.step()
        assert storages_on_host(optimizer)
    assert same(one, model)
    bring_states_back(optimizer)
    assert not is_offloaded(optimizer)
    assert not storages_on_host(optimizer)
    offload_states(optimizer, plan, model)
    assert storages_on_host(optimizer)


def test_states_lie_on_the_host_between_steps_those_that_are_loaded_too() -> None:
    plan = tight(adamw)
    assert plan.states is not None
    _, moved = train(adamw, plan)
    saved = moved.state_dict()
    assert is_offloaded(moved)
    assert len(storages_on_host(moved)) == 2 * sum(
        map(len, plan.states.parts[: plan.states.moved_parts])
    )
    other, again = train(adamw, plan, steps=1)
    again.load_state_dict(saved)
    states = [v for s in again.state.values() for v in s.values()]
    assert storages_on_host(again) <= set(map(storage_key, states))
    for x in batches(2):
        other(x).square().mean().backward()
        again.step()
    assert len(storages_on_host(again)) == len(storages_on_host(moved))


@pytest.mark.parametrize("more", [pytest.param({}, marks=pytest.mark.slow), {"accumulate": True}])
def test_measured_memory_falls_and_is_within_the_budget(more: dict[str, Any]) -> None:
    plan = tight(adamw, **more)
    model = build()
    planned = plan.apply(model)
    optimizer = adamw(list(planned.parameters()))
    plan.offload_states(optimizer, planned)
    x = batches(1)[0]

    def step() -> None:
        planned.zero_grad(set_to_none=True)
        for _ in range(1 + len(more)):
            planned(x).backward()
        optimizer.step()

    step()
    planned.zero_grad(set_to_none=True)
    away = storages_on_host(optimizer)
    states = [v for s in optimizer.state.values() for v in s.values()]
    kept = [v for v in states if storage_key(v) not in away]
    static = sum(t.untyped_storage().nbytes() for t in (*planned.parameters(), *kept, x))
    measured = static + measure_peak(step).peak_bytes
    assert plan.states is not None
    assert measured <= plan.budget_bytes
    assert measured == pytest.approx(plan.peak_bytes, rel=0.01)
    assert plan.budget_bytes < plan.plain_peak_bytes


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_a_disk_that_fails_loses_nothing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tight(adamw)
    model, optimizer = train(adamw, plan, steps=1)
    plain, whole = train(adamw, None, steps=1)
    before = [p.clone() for p in model.parameters()]
    for trained in (model, plain):
        trained(batches(2)[1]).square().mean().backward()
    own, calls = getattr(os, call), []

    def failing(*args: Any) -> int:
        calls.append(1)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC if call == "pwrite" else errno.EIO, "the disk fails")
        done: int = own(*args)
        return done

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(planner.HostMemoryError, match="the disk fails"):
        optimizer.step()
    monkeypatch.undo()
    whole.step()
    # some parameters are stepped, the others as they were, each with the state that belongs to it
    for p, q, old in zip(model.parameters(), plain.parameters(), before, strict=True):
        stepped = torch.equal(p, q)
        assert stepped or torch.equal(p, old)
        moments = optimizer.state[p]["exp_avg"], whole.state[q]["exp_avg"]
        assert torch.equal(*moments) is stepped
    assert all(len(g["params"]) == 16 for g in optimizer.param_groups)


def test_what_cannot_be_stepped_in_parts_is_refused() -> None:
    plan, model = tight(adamw), build()
    parameters = list(model.parameters())
    with pytest.raises(planner.BadRequest, match="cannot take its step a part"):
        offload_states(torch.optim.LBFGS(parameters), plan, model)
    with pytest.raises(planner.BadRequest, match="cannot take its step a part"):
        offload_states(torch.optim.AdamW(parameters, capturable=True), plan, model)

    class Normed(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            own = [p for group in self.param_groups for p in group["params"]]
            norm = torch.stack([p.grad.norm() for p in own]).norm()
            for p in own:
                p.data.add_(p.grad / norm, alpha=-0.1)

    with pytest.raises(planner.BadRequest, match="does not treat each parameter by itself"):
        offload_states(Normed(parameters, lr=0.1), plan, model)
    wrapped = adamw(parameters)
    wrapped.step = functools.partial(wrapped.step)  # type: ignore[method-assign]
    with pytest.raises(planner.BadRequest, match="something has replaced the step of AdamW"):
        offload_states(wrapped, plan, model)
    with pytest.raises(planner.BadRequest, match="none of the parameters"):
        offload_states(adamw(list(build().parameters())), plan, model)
    assert plan.states is not None
    less = replace(plan, states=replace(plan.states, moved_bytes=1))
    with pytest.raises(planner.HostMemoryError, match="more states than"):
        train(MAKERS["amsgrad"], less)


class OfAnother(torch.optim.SGD):
    """Takes the step of the class above, around which torch calls hooks, too."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


def test_hooks_see_one_step_whatever_class_takes_it() -> None:
    model, calls, plan = build(), list[int](), tight("momentum")
    torch.optim.SGD(model.parameters())  # torch looks after the step of a class when it is made
    optimizer = OfAnother(model.parameters(), lr=0.1, momentum=0.9)
    offload_states(optimizer, plan, model)

    def seen(stepped: Optimizer, *_: Any) -> None:
        calls.append(sum(len(group["params"]) for group in stepped.param_groups))

    optimizer.register_step_pre_hook(seen)
    optimizer.register_step_post_hook(seen)
    for x in batches(2):
        model(x).square().mean().backward()
        optimizer.step()
    assert calls == [16] * 4


class Odd(torch.optim.SGD):
    """Momentum that no parameter has quite by itself, each ``kind`` for another reason."""

    def __init__(self, parameters: list[Tensor], kind: str, lr: float = 0.1) -> None:
        super().__init__(parameters, lr=lr)
        self.kind = kind

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        every: dict[Any, Any] = self.state
        if self.kind == "counts in a state of all":
            every["steps"] = every.get("steps", 0) + 1
        for group in self.param_groups:
            norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
            for p in group["params"]:
                own = every[p]
                if not own:
                    own["mean"] = own["read"] = torch.zeros_like(p)
                    if self.kind == "states are one":
                        own["itself"] = None
                    else:
                        own["read"] = None
                    own["weight"] = p.data if self.kind == "a state is the parameter" else None
                scale = (100 / norm).clamp(max=1) if self.kind == "clips all together" else 1
                own["mean"].mul_(0.9).add_(p.grad * scale)
                read = own["mean"] if own["read"] is None else own["read"]
                weight = p.data if own["weight"] is None else own["weight"]
                rate = group["lr"] * (10 * norm.item() if self.kind == "scales all together" else 1)
                weight.add_(read, alpha=-rate)


ODD = (
    "counts in a state of all",
    "states are one",
    "a state is the parameter",
    "clips all together",
    "scales all together",
)


@pytest.mark.parametrize("kind", ODD)
def test_odd_steps_are_refused_even_where_a_warmup_begins_with_a_rate_of_zero(kind: str) -> None:
    device, parameters = torch.device("cpu"), list(build().parameters())
    require_separable(Odd(parameters, "none"), device)
    with pytest.raises(planner.BadRequest, match="does not treat each parameter by itself"):
        require_separable(Odd(parameters, kind, lr=0.0), device)


class Counting(Optimizer):
    """Momentum whose correction counts steps of all parameters: in the group, or by itself."""

    def __init__(self, parameters: list[Tensor], where: str) -> None:
        super().__init__(parameters, {"lr": 0.1, "steps": 0})
        self.where, self.steps = where, torch.zeros(())

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += self.where == "group"
            self.steps += self.where == "itself"
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("mean", torch.zeros_like(p)).mul_(0.9).add_(p.grad, alpha=0.1)
                count = group["steps"] + float(self.steps)
                p.data.add_(state["mean"] / (1 - 0.9**count), alpha=-group["lr"])


@pytest.mark.parametrize("where", ["group", "itself"])
def test_steps_counted_for_all_are_not_counted_by_parts(where: str) -> None:
    """And trying that changes nothing of the optimizer."""
    model, plan = build(), tight("momentum")
    optimizer = Counting(list(model.parameters()), where)
    with pytest.raises(planner.BadRequest, match="counts steps for all"):
        offload_states(optimizer, plan, model)
    assert optimizer.steps == optimizer.param_groups[0]["steps"] == 0


@pytest.mark.parametrize("dtype", slow_but({torch.float64}, [torch.float64, torch.bfloat16]))
def test_states_of_another_dtype_have_places_of_their_own(dtype: torch.dtype) -> None:
    """Wider or narrower than what was there, they lie over no other and are read as they are."""
    found = []
    for plan in (None, tight("momentum")):
        model = build()
        optimizer: Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if plan is not None:
            room = replace(plan.states, moved_bytes=3 * plan.states.moved_bytes)
            offload_states(optimizer, replace(plan, states=room), model)
        for i, x in enumerate(batches(4)):
            if i == 2:
                model.to(dtype)
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad()
            model(x.to(model[0].weight.dtype)).square().mean().backward()  # type: ignore[union-attr, arg-type]
            optimizer.step()
        found.append((model, optimizer.state_dict()["state"]))
    (one, plain), (other, moved) = found
    assert same(one, other)
    for number, states in plain.items():
        assert torch.equal(states["momentum_buffer"], moved[number]["momentum_buffer"])


class Wide(torch.optim.SGD):
    """Keeps its momentum in single precision, whatever it is loaded in."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state[p].get("momentum_buffer")
                mean = torch.zeros_like(p, dtype=torch.float32) if held is None else held.float()
                self.state[p]["momentum_buffer"] = mean = mean.mul(0.9).add(p.grad.float())
                p.data.add_(mean.to(p.dtype), alpha=-0.1)


def test_states_that_torch_narrows_when_they_are_loaded_have_room_to_be_wide_again() -> None:
    found = []
    for plan in (None, tight("momentum")):
        model = build().bfloat16()
        optimizer: Optimizer = Wide(model.parameters(), lr=0.1)
        for i, x in enumerate(batches(4)):
            if i == 2:
                saved, optimizer = optimizer.state_dict(), Wide(model.parameters(), lr=0.1)
                if plan is not None:
                    offload_states(optimizer, plan, model)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            model(x.bfloat16()).square().mean().backward()
            optimizer.step()
        found.append(model)
    assert same(*found)


def to_the_same_names(optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
    """Hand states to the parameters of their names, as torch's documentation has a hook do."""
    saved, now = loaded["param_groups"][0], optimizer.param_groups[0]["param_names"]
    number_of = dict(zip(saved["param_names"], saved["params"], strict=True))
    numbers = zip(saved["params"], now, strict=True)
    states = {number: loaded["state"][number_of[name]] for number, name in numbers}
    return {"state": states, "param_groups": [{**saved, "param_names": now}]}


@pytest.mark.parametrize("first", ["hook", "states"])
def test_hooks_may_hand_loaded_states_to_other_parameters(first: str) -> None:
    found = []
    for plan in (None, tight("momentum")):
        model = build()
        named = list(model.named_parameters())
        optimizer = torch.optim.SGD(named, lr=0.1, momentum=0.9)
        for i, x in enumerate(batches(4)):
            if i == 2:
                saved = optimizer.state_dict()
                optimizer = torch.optim.SGD(named[::-1], lr=0.1, momentum=0.9)
                if first == "hook":
                    optimizer.register_load_state_dict_pre_hook(to_the_same_names)
                if plan is not None:
                    offload_states(optimizer, plan, model)
                if first == "states":
                    optimizer.register_load_state_dict_pre_hook(to_the_same_names)
                optimizer.load_state_dict(saved)
                assert bool(storages_on_host(optimizer)) is (plan is not None)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        found.append(model)
    assert same(*found)


def test_a_disk_that_fails_while_states_are_loaded_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (_, saved), (_, optimizer) = train(adamw, None), train(adamw, tight(adamw), steps=1)
    own, calls = os.pwrite, list[int]()

    def failing(*args: Any) -> int:
        calls.append(1)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, "the disk fails")
        return own(*args)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(planner.HostMemoryError, match="the disk fails"):
        optimizer.load_state_dict(saved.state_dict())
    monkeypatch.undo()
    for number, states in saved.state_dict()["state"].items():
        found = optimizer.state_dict()["state"][number]
        assert all(torch.equal(v, found[k]) for k, v in states.items())


def test_what_is_loaded_comes_a_part_at_a_time() -> None:
    plan = tight("adamw")
    model, saved = train(adamw, None)
    state = saved.state_dict()
    before = {k: dict(v) for k, v in state["state"].items()}
    fresh = adamw(list(model.parameters()))
    offload_states(fresh, plan, model)
    held = sum(t.nbytes for s in state["state"].values() for t in s.values())
    record = measure_peak(lambda: fresh.load_state_dict(state))
    assert record.peak_bytes < held / 2
    for number, states in before.items():
        assert states.keys() == state["state"][number].keys(), "what was given is left alone"
        for name, value in states.items():
            assert torch.equal(fresh.state_dict()["state"][number][name], value)
    assert storages_on_host(fresh)


def test_models_that_were_not_planned_are_refused() -> None:
    plan, model = tight("momentum"), build()
    part = nn.Sequential(*list(model)[:2])  # type: ignore[call-overload]
    wide = nn.Sequential(*(nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(8)))
    for wrong, reason in ((part, "has none"), (wide, r"one of shape \(128, 128\)")):
        with pytest.raises(planner.BadRequest, match=reason):
            offload_states(adamw(list(wrong.parameters())), plan, wrong)
    with pytest.raises(planner.BadRequest, match="expected the optimizer, then the model"):
        offload_states(model, plan, adamw(list(model.parameters())))  # type: ignore[arg-type]
    once = offload_states(adamw(list(model.parameters())), plan, model)
    with pytest.raises(planner.BadRequest, match="on the host already"):
        offload_states(once, plan, model)


def test_a_loop_that_forgets_is_told() -> None:
    plan = tight(adamw)
    planned = plan.apply(build())
    optimizer = adamw(list(planned.parameters()))
    planned(batches(1)[0]).backward()
    with pytest.warns(planner.PlannerWarning, match="call plan.offload_states"):
        optimizer.step()
