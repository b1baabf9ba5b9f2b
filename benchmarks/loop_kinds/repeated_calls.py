"""Loops in which a call depends on the calls before it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.loop_kinds.left_behind import Layered
from benchmarks.loop_kinds.loop import Net, Setup, batch, loop, trained

KIND = "depends on the calls before"
CALLS = 0


@loop(KIND)
def count_in_a_buffer() -> Setup:
    class Model(Net):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) / self.calls

    return trained(Model())


@loop(KIND)
def average_in_a_buffer() -> Setup:
    class Model(Layered):
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(64))

        def keep(self, hidden: Tensor) -> None:
            self.average = 0.9 * self.average + 0.1 * hidden.detach().mean(0)

    return trained(Model())


@loop(KIND, refused="reads attribute 'calls'")
def count_in_an_attribute() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return min(1.0, self.calls / 10) * super().forward(x)

    return trained(Model())


@loop(KIND, refused="from 0 to 1")
def count_in_a_dict() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"calls": 0}

        def forward(self, x: Tensor) -> Tensor:
            self.state["calls"] += 1
            return super().forward(x) / self.state["calls"]

    return trained(Model())


@loop(KIND, refused="from 0 to 1")
def count_in_a_global() -> Setup:
    globals()["CALLS"] = 0

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            global CALLS  # noqa: PLW0603 - people do
            CALLS += 1
            return super().forward(x) / CALLS

    return trained(Model())


@loop(KIND, refused="from 0 to 1")
def count_in_a_closure() -> Setup:
    calls = 0

    def count(module: Any, args: Any) -> Any:
        nonlocal calls
        calls += 1
        return (args[0] * calls,)

    model = Net()
    model.up.register_forward_pre_hook(count)
    return trained(model)


@loop(KIND, refused="an iterator")
def count_by_an_iterator() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.steps = itertools.count(1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / next(self.steps)

    return trained(Model())


@loop(KIND, refused="reads attribute 'average'")
def average_in_an_attribute() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.average = torch.ones(())

        def forward(self, x: Tensor) -> Tensor:
            loss = super().forward(x)
            self.average = 0.9 * self.average + 0.1 * loss.detach()
            return loss / self.average

    return trained(Model())


@loop(KIND, refused="the call before left")
def average_in_a_dict() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.state: dict[str, Any] = {}

        def forward(self, x: Tensor) -> Any:
            loss = super().forward(x)
            self.state["average"] = 0.9 * self.state.get("average", 1.0) + 0.1 * loss.detach()
            return loss / self.state["average"]

    return trained(Model())


@loop(KIND, refused="the call before left")
def bank_of_features() -> Setup:
    class Model(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.bank: list[Tensor] = []

        def keep(self, hidden: Tensor) -> None:
            self.bank.append(hidden.detach().mean())

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.stack(self.bank).mean()

    return trained(Model())


@loop(KIND, refused="call the model once before planning")
def mask_made_at_the_first_call() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mask: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.mask is None:
                self.mask = torch.ones(16, 16).tril()[7]
            return super().forward(x * self.mask)

    return trained(Model())


@loop(KIND)
def mask_made_before() -> Setup:
    setup = mask_made_at_the_first_call()
    with torch.no_grad():
        setup.model(batch())
    return setup


@loop(KIND, refused="from 3.0 to missing")
def weights_taken_from_a_list() -> Setup:
    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.weights = [1.0, 2.0, 3.0]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.weights.pop()

    return dataclasses.replace(trained(Model()), steps=3)
