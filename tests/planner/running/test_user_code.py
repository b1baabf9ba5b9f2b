"""What people's forward does beside its arithmetic: constants, texts, caches, own modules."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner import CaptureError
from tests.by_default import slow_but

TABLE = torch.linspace(0.5, 2, 64)


class Model(nn.Module):
    """One layer, and a function of the module, the input and the layer's output."""

    def __init__(self, between: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.between = nn.Linear(8, 8), between
        self.mask = torch.ones(8, 8).tril().bool()
        self.rows = [torch.linspace(0, 1, 64)]
        self.made: Any = None
        self.register_module("slot", None)

    def forward(self, x: Tensor) -> Any:
        found = self.between(self, x, self.layer(x))
        return found.square().mean() if isinstance(found, Tensor) and found.dim() else found


def planned(between: Callable[[Any, Tensor, Tensor], Any], **said: Any) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    model, x = Model(between), torch.randn(8, 8)
    own = copy.deepcopy(model)
    return own, planner.fit(model, "1GB", inputs=x, optimizer=None, **said).apply(model), x


def assert_trains_alike(plain: Any, called: Any, x: Tensor) -> None:
    found = []
    for model in (plain, called):
        model.zero_grad()
        loss = model(x)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert plain.made == called.made


CONSTANTS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a slice of a mask": lambda m, x, y: y.masked_fill(~m.mask[: x.shape[0]], -1.0),
    "a view of one in a list": lambda m, x, y: y * m.rows[0].view(8, 8).exp(),
    "a view of a global": lambda m, x, y: y * TABLE.view(8, 8).log(),
    "a view with a dimension more": lambda m, x, y: y * torch.sin(m.rows[0].view(8, 8)[None])[0],
    "a part of a split": lambda m, x, y: y * m.rows[0].view(2, 4, 8).unbind()[0].exp().repeat(2, 1),
    "a view of the input": lambda m, x, y: y + x.view(64).exp().view(8, 8),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("method", slow_but({"recompute_all"}, ["plain", "recompute_all"]))
def test_no_kernel_writes_into_a_constant(name: str, method: str) -> None:
    plain, called, x = planned(CONSTANTS[name], method=method)
    before = TABLE.clone(), plain.mask.clone(), plain.rows[0].clone(), x.clone()
    for _ in range(3):
        assert_trains_alike(plain, called, x)
    for a, b in zip(before, (TABLE, called.mask, called.rows[0], x), strict=True):
        assert torch.equal(a, b)


def _tag(m: Any, x: Tensor, y: Tensor) -> Tensor:
    m.made = f"{x.shape[0]:03d} of {x.shape} {x.shape[0]!r} " + json.dumps({"n": x.shape[0]})
    return y * {"5": 2.0}.get(str(x.shape[0]), 1.0)


def _whole(m: Any, x: Tensor, y: Tensor) -> Tensor:
    rows = x.shape[0]
    return y * 2 if isinstance(rows, int) and rows < 6 else y


@pytest.mark.parametrize("between", [_tag, _whole])
def test_a_size_is_a_number_to_whoever_writes_it_or_asks_for_its_kind(
    between: Callable[[Any, Tensor, Tensor], Tensor],
) -> None:
    plain, called, x = planned(between)
    for rows in (8, 7, 6, 5, 4, 7, 3, 5):
        assert_trains_alike(plain, called, x[:rows])


def _kept(m: Any, x: Tensor, y: Tensor) -> Tensor:
    m.made = f"loss {y.mean().item():.3f}"
    return y


def _kept_tensor(m: Any, x: Tensor, y: Tensor) -> Tensor:
    m.made = str(y.detach().mean())
    return y


def _returned(m: Any, x: Tensor, y: Tensor) -> Any:
    return {"loss": y.square().mean(), "log": f"{y.mean().item():.3f}"}


def _number_returned(m: Any, x: Tensor, y: Tensor) -> Any:
    return {"loss": y.square().mean(), "mean": y.mean().item()}


def _own_module(m: Any, x: Tensor, y: Tensor) -> Tensor:
    m.extra = nn.Linear(8, 4)
    made: Tensor = m.extra(y)
    return made


def _slot_filled(m: Any, x: Tensor, y: Tensor) -> Tensor:
    if m.slot is None:
        m.slot = nn.Linear(8, 4)
    made: Tensor = m.slot(y)
    return made


def _written_out(m: Any, x: Tensor, y: Tensor) -> Tensor:
    ids, more = torch.arange(8) * 0, torch.ones(8, dtype=torch.long)
    torch.add(ids, (x > 0).sum(1), out=more)
    return y * 2 if (more > 3).any() else y


REFUSED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "a text that is kept": (_kept, "keeps a text made of a value of the step in attribute 'made'"),
    "a text of a tensor": (_kept_tensor, "make the text outside"),
    "a text that is returned": (_returned, "output 'log' is a number of the step, or a text"),
    "a number that is returned": (_number_returned, "output 'mean' is a number of the step"),
    "a module made on the way": (_own_module, "makes submodule 'extra'.*before planning"),
    "a slot that is filled": (_slot_filled, "makes submodule 'slot'.*before planning"),
    "a question of what was written": (_written_out, "needs the value of a tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_plan_cannot_make_again_is_refused_and_leaves_nothing(kind: str) -> None:
    between, words = REFUSED[kind]
    model = Model(between)
    names = [n for n, _ in model.named_parameters()]
    with pytest.raises(CaptureError, match=words):
        planner.fit(model, "1GB", inputs=torch.randn(8, 8))
    assert [n for n, _ in model.named_parameters()] == names
    assert model.made is None
    assert model.slot is None


@functools.lru_cache
def causal(length: int) -> Tensor:
    return torch.ones(length, length).tril().bool()


@pytest.mark.parametrize("warm", [False, True])
def test_tensors_in_a_cache(warm: bool) -> None:
    causal.cache_clear()
    if warm:
        causal(8)
    plain, called, x = planned(lambda m, x, y: y.masked_fill(~causal(x.shape[1])[: x.shape[0]], -1))
    assert type(causal(8)) is Tensor
    for rows in (8, 5, 4, 8):
        assert_trains_alike(plain, called, x[:rows])


def test_answers_may_be_nested_and_no_number_is_refused() -> None:
    class Asking(nn.Linear):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            scale = sum(map(sum, ids.tolist()))
            mean = (ids.sum() / (ids > 0).sum()).item()
            found: Tensor = super().forward(x) * scale * mean
            return found

    model, x = Asking(4, 4), torch.randn(3, 4)
    ids = torch.tensor([[1, 2], [3, 4]])
    called = planner.fit(model, "1GB", inputs={"x": x, "ids": ids}, optimizer=None).apply(model)
    for more in (ids, ids + 1, ids, ids * 2):
        assert torch.equal(called(x, more), model(x, more))
    with pytest.raises(planner.PlanMismatch, match=r"no number \(nan\)"):
        called(x, ids * 0)


@pytest.mark.parametrize("read", [False, True])
def test_a_list_that_grows_is_traced_anew_only_where_it_is_read(
    read: bool, traced: list[bool]
) -> None:
    class History(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.history: list[float] = []

    class Reading(History):
        def forward(self, input: Tensor) -> Tensor:
            loss = super().forward(input).square().mean()
            self.history.append(loss.item())
            return loss * len(self.history)

    class Appending(History):
        def forward(self, input: Tensor) -> Tensor:
            loss = super().forward(input).square().mean()
            self.history.append(loss.item())
            return loss

    cls = Reading if read else Appending
    plain, x = cls(), torch.randn(4, 8)
    model = copy.deepcopy(plain)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for _ in range(5):
        assert torch.equal(called(x), plain(x))
    assert model.history == plain.history
    assert len(traced) == (5 if read else 1)
