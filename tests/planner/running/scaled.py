"""A model that depends on Python's state, for tests of what a plan makes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Scaled(nn.Module):
    """One layer, whose output is multiplied by a number that Python finds in ``state``."""

    def __init__(self, state: Any, number: Callable[[Any], float]) -> None:
        super().__init__()
        self.layer, self.state, self.number = nn.Linear(4, 4), state, number

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x).square().mean() * self.number(self.state)
        return made
