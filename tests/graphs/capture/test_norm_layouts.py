"""A normalization lays its result as its kernel does, whatever arrives there and in what types."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import planner

NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(8),
    "group": lambda: nn.GroupNorm(2, 6),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "backwards": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
}


class Normal(nn.Module):
    """A normalization of a narrow batch that lies otherwise, and a layer that asks how it lies."""

    def __init__(self, norm: nn.Module, lay: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.lay, self.layer = norm, lay, nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(1))  # torch's own kernel crashes without a gradient

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.lay((x * self.scale).bfloat16())
        made: Tensor = self.layer(self.norm(narrow).mT).square().mean()
        return made


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_narrow_batch_may_lie_in_any_way_under_autocast(norm: str, layout: str) -> None:
    torch.manual_seed(0)
    eager = Normal(NORMS[norm](), LAYOUTS[layout])
    model, x = copy.deepcopy(eager), torch.randn(4, 6, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        plan = planner.fit(model, "1GB", inputs=x, optimizer=None, method="recompute_all")
        losses = plan.apply(model)(x), eager(x)
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    pairs = zip(model.parameters(), eager.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs)
