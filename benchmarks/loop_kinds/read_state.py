"""Loops whose forward reads a value that the loop changes."""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.loop_kinds.loop import Net, Setup, batch, loop, trained

KIND = "reads what the loop changes"
WEIGHT = 1.0
SETTINGS = {"weight": 1.0}


@dataclass
class Settings:
    """Settings as an object, one of them in an object of its own."""

    weight: float = 1.0
    inner: dict[str, Any] = field(default_factory=lambda: {"scales": [1.0, 1.0]})


@dataclass(slots=True)
class Slotted:
    """Settings without a ``__dict__``."""

    weight: float = 1.0


class Schedule:
    """A schedule that the loop advances."""

    def __init__(self) -> None:
        self.now = 0

    @property
    def weight(self) -> float:
        """The weight of this step."""
        return 1 + self.now / 10


class Weighted(Net):
    """The loss times a weight that is read from somewhere."""

    def weight(self) -> float:
        """Return the weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted loss."""
        return self.weight() * super().forward(x)


def grown(k: int) -> float:
    """Return the weight of step k."""
    return 1 + k / 10


@loop(KIND)
def weight_in_an_attribute() -> Setup:
    class Model(Weighted):
        beta = 1.0

        def weight(self) -> float:
            return self.beta

    return trained(Model(), lambda m, k: setattr(m, "beta", grown(k)))


@loop(KIND)
def weight_in_a_namespace() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.config = types.SimpleNamespace(weight=1.0)

        def weight(self) -> float:
            return float(self.config.weight)

    return trained(Model(), lambda m, k: setattr(m.config, "weight", grown(k)))


@loop(KIND)
def weight_in_a_dict() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.config = {"weight": 1.0}

        def weight(self) -> float:
            return self.config["weight"]

    return trained(Model(), lambda m, k: m.config.update(weight=grown(k)))


@loop(KIND)
def weight_in_a_dataclass() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.config = Settings()

        def weight(self) -> float:
            return self.config.weight

    return trained(Model(), lambda m, k: setattr(m.config, "weight", grown(k)))


@loop(KIND)
def weight_in_slots() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.config = Slotted()

        def weight(self) -> float:
            return self.config.weight

    return trained(Model(), lambda m, k: setattr(m.config, "weight", grown(k)))


@loop(KIND)
def weight_deep_inside() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.configs = [Settings()]

        def weight(self) -> float:
            return float(self.configs[0].inner["scales"][1])

    return trained(Model(), lambda m, k: m.configs[0].inner["scales"].__setitem__(1, grown(k)))


@loop(KIND)
def weight_by_a_property() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule()

        def weight(self) -> float:
            return self.schedule.weight

    return trained(Model(), lambda m, k: setattr(m.schedule, "now", k))


@loop(KIND)
def weight_in_a_global() -> Setup:
    globals()["WEIGHT"] = 1.0

    class Model(Weighted):
        def weight(self) -> float:
            return WEIGHT

    return trained(Model(), lambda m, k: globals().update(WEIGHT=grown(k)))


def from_settings() -> float:
    """Return the weight that is in a dict of this file."""
    return SETTINGS["weight"]


@loop(KIND)
def weight_by_a_function() -> Setup:
    SETTINGS["weight"] = 1.0

    class Model(Weighted):
        def weight(self) -> float:
            return from_settings()

    return trained(Model(), lambda m, k: SETTINGS.update(weight=grown(k)))


@loop(KIND)
def weight_in_a_closure() -> Setup:
    beta = 1.0

    class Model(Weighted):
        def weight(self) -> float:
            return beta

    def before(model: Any, k: int) -> None:
        nonlocal beta
        beta = grown(k)

    return trained(Model(), before)


@loop(KIND)
def weight_of_the_class() -> Setup:
    class Model(Weighted):
        beta = 1.0

        def weight(self) -> float:
            return self.beta

    return trained(Model(), lambda m, k: setattr(type(m), "beta", grown(k)))


@loop(KIND)
def weight_in_an_array() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.table = np.ones(3)

        def weight(self) -> float:
            return float(self.table[1])

    return trained(Model(), lambda m, k: m.table.__setitem__(1, grown(k)))


@loop(KIND)
def weight_of_a_child() -> Setup:
    class Scale(nn.Module):
        by = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = Scale()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.scale(super().forward(x))
            return out

    return trained(Model(), lambda m, k: setattr(m.scale, "by", grown(k)))


@loop(KIND)
def attribute_that_appears() -> Setup:
    class Model(Weighted):
        def weight(self) -> float:
            return float(getattr(self, "late", 1.0))

    return trained(Model(), lambda m, k: setattr(m, "late", grown(k)) if k > 1 else None)


@loop(KIND)
def attribute_that_vanishes() -> Setup:
    class Model(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.early = 2.0

        def weight(self) -> float:
            return self.early if hasattr(self, "early") else 1.0

    return trained(Model(), lambda m, k: vars(m).pop("early", None) if k == 2 else None)


@loop(KIND)
def dropout_rate_that_falls() -> Setup:
    return trained(Net(), lambda m, k: setattr(m.drop, "p", 0.4 - k / 10))


@loop(KIND)
def temperature_of_a_softmax() -> Setup:
    class Model(Net):
        tau = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return (self.body(x) / self.tau).softmax(-1).square().mean()

    return trained(Model(), lambda m, k: setattr(m, "tau", 1 / grown(k)))


@loop(KIND)
def loss_with_a_schedule() -> Setup:
    schedule = Schedule()
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def weighted(out: Tensor) -> Tensor:
        return schedule.weight * out.square().mean()

    def step(called: nn.Module, k: int) -> Tensor:
        schedule.now = k
        out: Tensor = called(batch(k))
        return weighted(out) if called is model else out

    return Setup(model, step, {"loss": weighted})


@loop(KIND)
def hook_with_a_scale() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0
            self.up.register_forward_pre_hook(lambda module, args: (args[0] * self.scale,))

    return trained(Model(), lambda m, k: setattr(m, "scale", grown(k)))


@loop(KIND)
def mask_that_is_replaced() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.ones(16)  # no buffer

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.mask)

    return trained(Model(), lambda m, k: setattr(m, "mask", (torch.arange(16) > k).float()))


@loop(KIND)
def mask_that_is_written() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.ones(16)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.mask)

    return trained(Model(), lambda m, k: m.mask[k].zero_())


@loop(KIND, refused="does not do what the plan was made for")
def layers_that_are_dropped_by_the_loop() -> Setup:
    class Model(Net):
        twice = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.body(x) if self.twice else x)

    return trained(Model(), lambda m, k: setattr(m, "twice", k > 1))
