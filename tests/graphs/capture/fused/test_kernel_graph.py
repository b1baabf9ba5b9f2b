"""A graph of kernels holds what the compiler says of the step that repeats nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs import plain_schedule, simulate
from tests.asked import capture_step


class Attention(nn.Module):
    """Attention written out: scores by far the largest, expanded to the shape that they have."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        split = self.project(x).view(rows, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        mixed = torch.softmax(query @ key.transpose(-1, -2), -1) @ value
        return self.out(mixed.transpose(1, 2).reshape(rows, length, 16)).square().mean()


class Images(nn.Module):
    """Convolutions: parameters are read as copies, and a gradient is written over what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x)))).square().mean()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Attention, (2, 96, 16)), (Images, (2, 3, 8, 8))],
)
def test_what_kernels_hold_is_what_the_compiler_says(
    model: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    found = capture_step(model(), inputs=torch.randn(shape), engine="inductor", optimizer=None)
    assert found.compiled is not None
    plain, fixed = plain_schedule(found.graph), found.graph.resident_bytes
    own = simulate(found.graph, plain).peak_bytes - fixed
    told = found.compiled.asked(plain).peak_bytes - fixed
    assert own == pytest.approx(told, rel=0.02)
