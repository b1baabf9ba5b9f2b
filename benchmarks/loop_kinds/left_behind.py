"""Loops whose forward leaves something beside what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.loop_kinds.loop import Net, Setup, batch, loop

KIND = "leaves something beside its output"


def adding(
    model: Net, extra: Callable[[Any], Tensor], before: Callable[[Any], object] | None = None
) -> Setup:
    """Return a loop whose loss has a further part.

    Args:
        model: leaves something.
        extra: the part, made of what the model left.
        before: called with the model before each step.
    """

    def step(called: Any, k: int) -> Tensor:
        if before is not None:
            before(model)
        loss: Tensor = called(batch(k))
        return loss + extra(model)

    return Setup(model, step)


class Layered(Net):
    """A net that shows its hidden layer to a method before it goes on."""

    def keep(self, hidden: Tensor) -> None:
        """Leave something of the hidden layer."""

    def body(self, x: Tensor) -> Tensor:
        """Return the output of the layers."""
        hidden = self.up(x)
        self.keep(hidden)
        out: Tensor = self.down(self.drop(hidden).relu())
        return out


class Holder:
    """An object to leave things with."""

    def __init__(self) -> None:
        self.last: Any = None
        self.seen: list[Tensor] = []


@loop(KIND)
def losses_in_a_list() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []

        def keep(self, hidden: Tensor) -> None:
            self.losses += [hidden.abs().mean(), hidden.square().mean()]

    return adding(Model(), lambda m: sum(m.losses), lambda m: m.losses.clear())


@loop(KIND)
def losses_in_a_fresh_list() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.losses = []
            self.losses.append(hidden.abs().mean())

    return adding(Model(), lambda m: sum(m.losses))


@loop(KIND)
def losses_that_pile_up() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []

        def keep(self, hidden: Tensor) -> None:
            self.losses.append(hidden.abs().mean())

    return adding(Model(), lambda m: m.losses[-1])


@loop(KIND)
def losses_by_name() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.losses: dict[str, Tensor] = {}

        def keep(self, hidden: Tensor) -> None:
            self.losses["sparse"] = hidden.abs().mean()

    return adding(Model(), lambda m: m.losses["sparse"])


@loop(KIND)
def feature_in_an_attribute() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.feature = hidden

    return adding(Model(), lambda m: m.feature.abs().mean())


@loop(KIND)
def feature_that_validation_replaces() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.feature = hidden

    def validate(model: Any) -> None:
        with torch.no_grad():
            model(batch(99))

    return adding(Model(), lambda m: m.feature.abs().mean(), validate)


@loop(KIND)
def feature_that_is_detached() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.feature = hidden.detach()

    return adding(Model(), lambda m: m.feature.abs().mean())


@loop(KIND)
def features_in_a_structure() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.features = {"hidden": hidden, "pair": (hidden * 2, 0.5)}

    return adding(Model(), lambda m: m.features["pair"][0].mean() * m.features["pair"][1])


@loop(KIND)
def feature_of_a_child() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.down.seen = hidden

    return adding(Model(), lambda m: m.down.seen.abs().mean())


@loop(KIND)
def feature_with_a_helper() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.holder = Holder()

        def keep(self, hidden: Tensor) -> None:
            self.holder.last = hidden
            self.holder.seen.append(hidden.mean())

    return adding(
        Model(),
        lambda m: m.holder.last.abs().mean() + m.holder.seen[0],
        lambda m: m.holder.seen.clear(),
    )


@loop(KIND)
def feature_by_a_hook() -> Setup:
    seen: dict[str, Tensor] = {}
    model = Net()
    model.up.register_forward_hook(lambda module, args, out: seen.update(up=out))
    return adding(model, lambda m: seen["up"].abs().mean())


@loop(KIND)
def features_by_hooks_in_a_list() -> Setup:
    seen: list[Tensor] = []
    model = Net()
    for layer in (model.up, model.down):
        layer.register_forward_hook(lambda module, args, out: seen.append(out))
    return adding(model, lambda m: seen[0].mean() + seen[1].mean(), lambda m: seen.clear())


@loop(KIND)
def feature_by_a_hook_that_rebinds() -> Setup:
    last = torch.zeros(())

    def keep(module: Any, args: Any, out: Tensor) -> None:
        nonlocal last
        last = out

    model = Net()
    model.up.register_forward_hook(keep)
    return adding(model, lambda m: last.abs().mean())


@loop(KIND)
def inputs_and_weights_in_attributes() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.seen, self.weight, self.rows = x, self.up.weight, x.shape[0]
            return super().forward(x)

    return adding(Model(), lambda m: m.seen.mean() + m.weight.square().sum() / m.rows)


@loop(KIND)
def loss_in_an_attribute_too() -> Setup:
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.loss = super().forward(x)
            return self.loss

    return adding(Model(), lambda m: m.loss)


@loop(KIND, refused="keeps a Holder")
def feature_in_a_new_object() -> Setup:
    class Model(Layered):
        def keep(self, hidden: Tensor) -> None:
            self.holder = Holder()
            self.holder.last = hidden

    return adding(Model(), lambda m: m.holder.last.abs().mean())


@loop(KIND, refused="hook of the backward pass")
def gradients_by_a_hook() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.slopes: list[Tensor] = []

        def keep(self, hidden: Tensor) -> None:
            hidden.register_hook(self.slopes.append)  # type: ignore[no-untyped-call]

    return adding(Model(), lambda m: torch.zeros(()))
