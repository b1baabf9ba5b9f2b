"""What a loop changes of Python's state between calls, wherever it lies: a plan follows it."""

from __future__ import annotations

import argparse
import copy
import enum
import functools
import math
import os
import sys
import threading
import types
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from tests.planner.running.scaled import Scaled


class Key:
    """Is equal to others of its name, whatever it holds."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key)

    def __hash__(self) -> int:
        return 1

    def scaled(self) -> float:
        return self.value * FACTOR

    def own(self) -> float:
        return self.value


class Text(str):
    """A text with attributes."""

    value: float


class Items(list[float]):
    """A list with attributes."""

    value = 1.0


class Table(dict[str, float]):
    """A dict whose items are read as attributes."""

    def __getattr__(self, name: str) -> float:
        return self[name]


class Kind(enum.Enum):
    """Has an attribute that is set later."""

    ONE = 1


class Settings:
    """Is never made: its class is what is read."""

    value = 1.0


class Plain:
    """Is multiplied by a global."""

    def __init__(self) -> None:
        self.value = 1.0

    def __mul__(self, other: float) -> float:
        return other * FACTOR


FACTOR = 1.0
WEAKLY = Plain()
OTHER: Any = types.ModuleType("a_file_of_settings")
OTHER.value = 1.0
VARIABLE: ContextVar[float] = ContextVar("scale", default=1.0)
Pair = namedtuple("Pair", "value other")


def _put(name: str) -> Callable[[Any, float], None]:
    return lambda m, value: setattr(m.state, name, value)


def _global(m: Any, value: float) -> None:
    globals()["FACTOR"] = value


def _renewed(make: Callable[[float], Any]) -> Callable[[Any, float], None]:
    return lambda m, value: setattr(m, "state", make(value))


def _other_key(m: Any, value: float) -> None:
    m.state.clear()
    m.state[Key(value)] = 1.0


def _other_element(m: Any, value: float) -> None:
    m.state.clear()
    m.state.add(Key(value))


def _hung(m: Any, value: float) -> None:
    m.layer.weight.scale = value


def _with_default(state: Any, table: dict[str, float] = {"value": 1.0}) -> float:  # noqa: B006
    return table["value"]


def _with_attribute(state: Any) -> float:
    return float(getattr(_with_attribute, "value", 1.0))


def _imported_inside(state: Any) -> float:
    import a_file_of_settings  # type: ignore[import-not-found]

    return float(a_file_of_settings.value)


def _text(value: float) -> Text:
    made = Text("a")
    made.value = value
    return made


def _of_a_thread() -> threading.local:
    made = threading.local()
    made.value = 1.0
    return made


def _first(state: Any) -> float:
    return float(next(iter(state)).value)


STATES: dict[str, tuple[Any, Callable[[Any], float], Callable[[Any, float], None]]] = {
    "an equal key": ({Key(1.0): 1.0}, _first, _other_key),
    "a key": ({Key(1.0): 1.0}, _first, lambda m, v: setattr(next(iter(m.state)), "value", v)),
    "part of a key": (
        {("a", Key(1.0)): 1.0},
        lambda s: float(next(iter(s))[1].value),
        lambda m, v: setattr(next(iter(m.state))[1], "value", v),
    ),
    "an element of a set": ({Key(1.0)}, _first, _other_element),
    "a named tuple": (Pair(1.0, 0), lambda s: s.value, _renewed(lambda v: Pair(v, 0))),
    "a dict of one's own": (
        Table(value=1.0),
        lambda s: s.value,
        lambda m, v: m.state.update(value=v),
    ),
    "what a list has beside": (Items([1.0]), lambda s: s.value, _put("value")),
    "what a text has beside": (_text(1.0), lambda s: s.value, _renewed(_text)),
    "what a member has beside": (
        Kind.ONE,
        lambda s: float(getattr(s, "value_", 1.0)),
        lambda m, v: setattr(Kind.ONE, "value_", v),
    ),
    "arguments of the command": (argparse.Namespace(value=1.0), lambda s: s.value, _put("value")),
    "a partial": (
        functools.partial(max, 1.0),
        lambda s: s(0.5),
        _renewed(lambda v: functools.partial(max, v)),
    ),
    "a method": (Key(1.0).own, lambda s: s(), _renewed(lambda v: Key(v).own)),
    "what a method is of": (
        Key(1.0).own,
        lambda s: s(),
        lambda m, v: setattr(m.state.__self__, "value", v),
    ),
    "a global that a method reads": (Key(1.0), lambda s: s.scaled(), _global),
    "a class": (None, lambda s: Settings.value, lambda m, v: setattr(Settings, "value", v)),
    "a default": (
        None,
        _with_default,
        lambda m, v: _with_default.__defaults__[0].update(value=v),  # type: ignore[index]
    ),
    "a function": (None, _with_attribute, lambda m, v: setattr(_with_attribute, "value", v)),
    "another file": (None, lambda s: OTHER.value, lambda m, v: setattr(OTHER, "value", v)),
    "a file that is imported inside": (
        None,
        _imported_inside,
        lambda m, v: setattr(OTHER, "value", v),
    ),
    "all attributes": (Plain(), lambda s: sum(vars(s).values()), _put("value")),
    "a copy": (Plain(), lambda s: copy.copy(s).value, _put("value")),
    "a new attribute": (Plain(), lambda s: s.__dict__.get("more", 1.0), _put("more")),
    "a table of globals": (None, lambda s: float(globals()["FACTOR"]), _global),
    "what an operator reads": (Plain(), lambda s: s * 1.0, _global),
    "what is of a thread": (_of_a_thread(), lambda s: s.value, _put("value")),
    "what is referred to weakly": (
        weakref.ref(WEAKLY),
        lambda s: s().value,
        lambda m, v: setattr(WEAKLY, "value", v),
    ),
    "a rate of an optimizer": (
        torch.optim.SGD([torch.zeros(1)], 1.0),
        lambda s: s.param_groups[0]["lr"],
        lambda m, v: m.state.param_groups[0].update(lr=v),
    ),
    "the environment": (
        None,
        lambda s: float(os.environ.get("PLANNER_TEST_SCALE", "1")),
        lambda m, v: os.environ.__setitem__("PLANNER_TEST_SCALE", str(v)),
    ),
    "a context variable": (None, lambda s: VARIABLE.get(), lambda m, v: VARIABLE.set(v) and None),
}


@pytest.mark.parametrize("kind", STATES)
def test_what_the_loop_changes_is_followed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, OTHER.__name__, OTHER)
    monkeypatch.setenv("PLANNER_TEST_SCALE", "1")
    state, number, change = STATES[kind]
    model, x = Scaled(state, number), torch.randn(2, 4)
    change(model, 1.0)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    found = []
    for value in (1.0, 3.0):
        change(model, value)
        found.append(called(x))
        assert torch.equal(found[-1], model(x))
    assert found[1] > found[0]


@pytest.mark.parametrize("of", ["weight", "bias"])
def test_what_hangs_on_a_parameter_is_followed(of: str) -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            scale = getattr(self, of).scale
            return super().forward(input).square().mean() * scale

    model, x = Own(4, 4), torch.randn(2, 4)
    getattr(model, of).scale = 1.0
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for scale in (1.0, 2.0, 5.0):
        getattr(model, of).scale = scale
        assert torch.equal(called(x), model(x))


FLOATS: dict[str, Callable[[float], float]] = {
    "no number": lambda w: 5.0 if w != w else w,  # noqa: PLR0124 - the question is the case
    "infinite": lambda w: 5.0 if math.isinf(w) else w,
    "no more than itself": lambda w: w - w + 2.0,
    "as a text": lambda w: {"2.0": 7.0}.get(str(w), w),
    "as it is printed": lambda w: float(f"{w:.1f}"),
    "of what type": lambda w: w if type(w) is float else 7.0,
    "of what kind": lambda w: w if isinstance(w, float) else 7.0,
}


@pytest.mark.parametrize("kind", FLOATS)
def test_a_float_that_is_asked_is_a_float(kind: str) -> None:
    number = FLOATS[kind]
    model, x = Scaled(1.5, number), torch.ones(2, 4)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for state in (1.5, 2.5, 2.0, math.nan, 3.0, math.inf, -math.inf):
        model.state = state
        assert torch.equal(called(x).nan_to_num(9.0), model(x).nan_to_num(9.0))


def test_a_table_that_is_an_ordered_dict_is_read_in_its_order() -> None:
    state = OrderedDict(a=1.0, b=2.0)
    model, x = Scaled(state, lambda s: next(iter(s.values()))), torch.randn(2, 4)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for _ in range(3):
        state.move_to_end(next(iter(state)))
        assert torch.equal(called(x), model(x))


def _set_hook(weight: Any) -> None:
    weight.register_hook(lambda g: 2 * g)


def _mark(weight: Any) -> None:
    weight.calls = getattr(weight, "calls", 0) + 1


def _look(weight: Any) -> None:
    assert weight.grad is None or weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (_set_hook, "sets a hook on 'weight'"),
        (_mark, "sets attribute 'calls' of 'weight'"),
        (_look, "reads or sets x.grad"),
        (lambda weight: weight.register_post_accumulate_grad_hook(print), "arrival of a gradient"),
    ],
)
def test_what_forward_does_to_parameters_is_refused_and_leaves_nothing(
    act: Any, words: str
) -> None:
    class Acting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            act(self.weight)
            return super().forward(input).square().mean()

    model = Acting(4, 4)
    with pytest.raises(planner.CaptureError, match=words):
        planner.fit(model, "1GB", inputs=torch.randn(2, 4))
    assert not vars(model.weight)
    assert not model.weight._backward_hooks


def test_what_the_backward_of_a_function_reads_is_followed() -> None:
    class Scaling(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * FACTOR * Settings.value

    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            found: Tensor = Scaling.apply(super().forward(input))
            return found.square().mean()

    model, x = Own(4, 4), torch.randn(2, 4)
    globals()["FACTOR"], Settings.value = 1.0, 1.0
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    for factor, value in ((1.0, 1.0), (2.0, 1.0), (2.0, 5.0)):
        globals()["FACTOR"], Settings.value = factor, value
        found = []
        for each in (model, called):
            each.zero_grad()
            each(x).backward()
            found.append([p.grad for p in each.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]


def test_a_parameter_is_seen_as_one() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            whole = isinstance(self.weight, nn.Parameter) and self.weight.is_leaf
            scale = 2.0 if whole and self.weight.grad_fn is None else 1.0
            return super().forward(input).square().mean() * scale

    model, x = Own(4, 4), torch.randn(2, 4)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    assert torch.equal(called(x), model(x))


def test_what_compares_the_type_of_a_tensor_is_refused() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            scale = 2.0 if type(self.weight) is nn.Parameter else 1.0
            return super().forward(input).square().mean() * scale

    with pytest.raises(planner.CaptureError, match=r"compares type.*ask with isinstance"):
        planner.fit(Own(4, 4), "1GB", inputs=torch.randn(2, 4))


def test_hooks_of_every_module_are_noticed() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.randn(2, 4)
    called = planner.fit(model, "1GB", inputs=x, loss=torch.mean, optimizer=None).apply(model)
    called(x)
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: 2 * out)
    try:
        with pytest.raises(planner.PlanMismatch, match="hooks of every module"):
            called(x)
    finally:
        hook.remove()
    called(x)


def test_what_hangs_on_an_input_is_refused() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).square().mean() * getattr(input, "scale", 1.0)

    model, x = Own(4, 4), torch.randn(2, 4)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    called(x)
    x.scale = 2.0  # type: ignore[attr-defined]
    with pytest.raises(planner.PlanMismatch, match=r"attributes of its own \(scale\)"):
        called(x)


def test_a_trace_that_fails_leaves_no_number_behind() -> None:
    table = {Key(1.5): 1.0}
    model, x = Scaled(table, lambda s: float(next(iter(s)).value)), torch.randn(2, 4)
    called = planner.fit(model, "1GB", inputs=x, optimizer=None).apply(model)
    key = next(iter(table))
    key.value = 2.5
    assert torch.equal(called(x), model(x))
    assert type(key.value) is float
