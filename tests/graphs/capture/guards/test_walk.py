"""Which places a model's code reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.guards.walk import reached

scale = torch.ones(1)
offset = 2.0
unused = 3.0


class Named(nn.Linear):
    """Has an attribute called as a global is, and reads another global."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scale = 1.0

    def forward(self, input: Tensor) -> Tensor:
        later: Any = lambda x: x + offset  # noqa: E731
        return super().forward(input) * self.scale + later(input)


def test_a_global_with_the_name_of_an_attribute_is_not_reached() -> None:
    found = [p for p in reached(Named(), ()).places if p.names is not None and "offset" in p.names]
    assert len(found) == 1
    assert not {"scale", "unused"} & (found[0].names or set())
