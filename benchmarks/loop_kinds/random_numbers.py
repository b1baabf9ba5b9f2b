"""Loops whose forward draws random numbers."""

from __future__ import annotations

import random
from random import random as draw
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.loop_kinds.loop import Net, Setup, loop, trained

KIND = "draws random numbers"
GENERATOR = np.random.default_rng(3)


def drawn(number: Any) -> Setup:
    """Return a loop whose loss is multiplied by a number that forward draws.

    Args:
        number: a function of the model.
    """

    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.python, self.torch = random.Random(0), torch.Generator().manual_seed(0)
            self.numpy, self.state = np.random.default_rng(0), np.random.RandomState(0)

        def forward(self, x: Tensor) -> Tensor:
            loss: Tensor = super().forward(x) * number(self)
            return loss

    return trained(Model())


@loop(KIND)
def torch_rand() -> Setup:
    return drawn(lambda m: torch.rand(()))


@loop(KIND)
def torch_bernoulli_mask() -> Setup:
    return drawn(lambda m: torch.bernoulli(torch.full((4,), 0.5)).mean())


@loop(KIND)
def torch_generator_of_the_model() -> Setup:
    return drawn(lambda m: torch.rand((), generator=m.torch))


@loop(KIND, refused="Python's random at")
def layer_dropped_by_python() -> Setup:
    class Model(Net):
        def body(self, x: Tensor) -> Tensor:
            return super().body(x) if random.random() < 0.5 else self.down(self.up(x))

    return trained(Model())


@loop(KIND, refused="Python's random")
def python_random_by_another_name() -> Setup:
    return drawn(lambda m: draw())


@loop(KIND, refused="Python's random at")
def python_choice() -> Setup:
    return drawn(lambda m: random.choice([1.0, 2.0]))


@loop(KIND, refused="'python'")
def python_generator_of_the_model() -> Setup:
    return drawn(lambda m: m.python.random())


@loop(KIND, refused="NumPy's random at")
def numpy_mix_up() -> Setup:
    return drawn(lambda m: float(np.random.beta(0.4, 0.4)))


@loop(KIND, refused="NumPy's random at")
def numpy_mask() -> Setup:
    return drawn(lambda m: torch.from_numpy(np.random.rand(4)).float().mean())


@loop(KIND, refused="'numpy'")
def numpy_generator_of_the_model() -> Setup:
    return drawn(lambda m: float(m.numpy.random()))


@loop(KIND, refused="'state'")
def numpy_state_of_the_model() -> Setup:
    return drawn(lambda m: float(m.state.rand()))


@loop(KIND, refused="'GENERATOR'")
def numpy_generator_of_the_file() -> Setup:
    return drawn(lambda m: float(GENERATOR.random()))
