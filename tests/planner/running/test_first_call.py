"""Models that set something up at their first call, and hooks that come later."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import planner
from planner import CaptureError


class Recording(nn.Module):
    """Sets up a hook at its first call, which records an output only if it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.ready = nn.Linear(8, 8), nn.Linear(8, 1), False

    def set_up(self, x: Tensor) -> None:
        def record(module: nn.Module, args: Any, out: Tensor) -> None:
            if self.wanted:
                self.seen = out.detach()

        self.inner.register_forward_hook(record)

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        self.wanted = False
        if not self.ready:
            self.set_up(x)
            self.ready = True
        return self.outer(self.inner(x).relu()).square().mean()


class Doubling(Recording):
    """Computes otherwise at its first call."""

    def set_up(self, x: Tensor) -> None:
        super().set_up(x)
        x.mul_(2)


class Holding(Recording):
    """Keeps the first batch in a closure."""

    def set_up(self, x: Tensor) -> None:
        first = x * 1
        self.inner.register_forward_hook(lambda module, args, out: out + first.sum())


class Growing(Recording):
    """Adds a hook at every call."""

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        self.ready = False
        return super().forward(x)


class Scaling(Recording):
    """Scales by another number at its first call."""

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        scale = 1.0 if self.ready else 0.1
        return super().forward(x * scale)


class Choosing(Recording):
    """Takes another of two equal layers at its first call."""

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        first = self.inner if self.ready else self.other
        return super().forward(first(x))

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8)


def gradients(model: nn.Module, inputs: Any, count: int = 2) -> list[Tensor]:
    for _ in range(count):
        made = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        (made if isinstance(made, Tensor) else made.loss).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_what_is_set_up_once_is_set_up_when_planned() -> None:
    torch.manual_seed(0)
    model, x = Recording(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    patched = planner.fit(model, "1GB", inputs=x).apply(model)
    assert len(patched.inner._forward_hooks) == 1
    for a, b in zip(gradients(plain, x), gradients(patched, x), strict=True):
        assert torch.equal(a, b)
    assert len(patched.inner._forward_hooks) == len(plain.inner._forward_hooks)


@pytest.mark.parametrize("kind", [Doubling, Holding, Growing, Scaling, Choosing])
def test_a_first_call_unlike_the_second_is_refused(kind: type[nn.Module]) -> None:
    model = kind()
    with pytest.raises(CaptureError, match="keeps a function in attribute '_forward_hooks"):
        planner.fit(model, "1GB", inputs=torch.randn(4, 8))
    assert not model.inner._forward_hooks  # type: ignore[union-attr]
    assert not model.ready


class Backend:
    """What a library keeps for a type of tensors."""

    def __init__(self, scale: float = 1.0) -> None:
        self.library, self.scale = torch, scale


BACKENDS: dict[Any, Any] = {}


class Looking(nn.Module):
    """Looks something up by the type of its input, and makes it where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))

    def found(self, x: Tensor) -> Backend:
        if type(x) not in BACKENDS:
            BACKENDS[type(x)] = Backend()
        return BACKENDS[type(x)]

    def forward(self, x: Tensor) -> Tensor:
        backend = self.found(x)
        return self.layers(backend.library.tanh(x) * backend.scale).square().mean()


class LookingInADict(Looking):
    """Keeps it, and that it did, in a dict of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Any] = {"ready": False}

    def found(self, x: Tensor) -> Backend:
        if not self.known["ready"]:
            self.known.update(backend=Backend(2.0), ready=True)
        return self.known["backend"]


class LookingInItself(Looking):
    """Keeps it in an attribute."""

    backend: Backend | None = None

    def found(self, x: Tensor) -> Backend:
        if self.backend is None:
            self.backend = Backend(0.5)
        return self.backend


@pytest.mark.parametrize("called", [False, True])
def test_what_is_kept_for_each_type_of_tensors_is_made_once(*, called: bool) -> None:
    BACKENDS.clear()
    torch.manual_seed(0)
    model, x = Looking(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    if called:
        model(x)
    patched = planner.fit(model, "1GB", inputs=x).apply(model)
    for a, b in zip(gradients(plain, x), gradients(patched, x), strict=True):
        assert torch.equal(a, b)


class LookingUpItsBatch(Looking):
    """Keeps an object with its first batch."""

    def found(self, x: Tensor) -> Backend:
        found = BACKENDS.setdefault("first", Backend())
        found.first = getattr(found, "first", x * 2)
        return found


class LookingAnew(Looking):
    """Keeps another object at every call."""

    def found(self, x: Tensor) -> Backend:
        BACKENDS[len(BACKENDS)] = Backend(1.0 + len(BACKENDS))
        return BACKENDS[len(BACKENDS) - 1]


class LookingOften(Looking):
    """Keeps an object once, and counts in it."""

    def found(self, x: Tensor) -> Backend:
        found = BACKENDS.setdefault("first", Backend())
        found.scale += 1.0
        return found


class LookingByType(Looking):
    """Keeps its first batch for a type of tensors."""

    def found(self, x: Tensor) -> Backend:
        if type(x) not in BACKENDS:
            BACKENDS[type(x)] = Backend()
            BACKENDS[type(x)].first = x * 2  # type: ignore[attr-defined]
        return super().found(x)


class LookingAndDropping(Looking):
    """Gives up the rest of a list that it makes something of."""

    def __init__(self) -> None:
        super().__init__()
        self.left = [1.0, 2.0, 3.0]

    def found(self, x: Tensor) -> Backend:
        if type(x) not in BACKENDS:
            BACKENDS[type(x)] = Backend(sum(self.left))
            self.left.clear()
        return BACKENDS[type(x)]


class LookingAndWarning(Looking):
    """Notes in a set that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.warned = {"other"}

    def found(self, x: Tensor) -> Backend:
        self.warned.add("here")
        return super().found(x)


@pytest.mark.parametrize(
    "kind",
    [
        *(LookingUpItsBatch, LookingAnew, LookingOften, LookingByType, LookingInADict),
        *(LookingInItself, LookingAndDropping, LookingAndWarning),
    ],
)
def test_what_is_made_of_a_call_is_refused_and_leaves_nothing(kind: type[Looking]) -> None:
    BACKENDS.clear()
    model = kind()
    before = copy.deepcopy({k: v for k, v in vars(model).items() if not k.startswith("_")})
    with pytest.raises(CaptureError, match=r"forward pass (keeps a Backend in|changes)"):
        planner.fit(model, "1GB", inputs=torch.randn(4, 8))
    assert not BACKENDS
    assert {k: v for k, v in vars(model).items() if not k.startswith("_")} == before


def language() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(64, (2, 8))
    return hf.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def test_hidden_states_of_transformers_are_returned() -> None:
    model, inputs = language()
    inputs["output_hidden_states"] = True
    plain = copy.deepcopy(model)
    patched = planner.fit(model, "1GB", inputs=inputs).apply(model)
    for a, b in zip(gradients(plain, inputs), gradients(patched, inputs), strict=True):
        assert torch.equal(a, b)
    pairs = zip(plain(**inputs).hidden_states, patched(**inputs).hidden_states, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_later_hook_that_hands_a_tensor_out_is_a_mismatch() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).square().mean()

    x, seen = torch.randn(16, 8), {}
    for name in ("a", "b"):
        patched = planner.fit(Two(), "1GB", inputs=x, optimizer="sgd").apply(Two())
        patched(x).backward()
        layer = getattr(patched, name)
        layer.register_forward_hook(lambda m, i, o: seen.__setitem__("out", o.detach()))
        with pytest.raises(planner.PlanMismatch, match="hooks or the forward of submodule"):
            patched(x)


def test_hooks_that_an_evaluation_adds_are_followed() -> None:
    model, inputs = language()
    plain = copy.deepcopy(model)
    patched = planner.fit(model, "1GB", inputs=inputs).apply(model)
    for each in (plain, patched):
        gradients(each, inputs, 1)
        with torch.no_grad():
            assert len(each(inputs["input_ids"], output_hidden_states=True).hidden_states) == 3
    for a, b in zip(gradients(plain, inputs), gradients(patched, inputs), strict=True):
        assert torch.equal(a, b)
