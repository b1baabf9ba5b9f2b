"""What Python holds changes between calls: the programs of one plan."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.running.variants import Variants

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


class Annealed(nn.Module):
    """Reads floats in many ways; ``steps`` is no float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16))
        self.config = types.SimpleNamespace(beta=1.0, name="x", steps=3)
        self.rates = {"tau": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        beta, tau = self.config.beta, self.rates["tau"]
        scale = ((beta + 0.1) - 0.1) * beta**2 / (1 + beta)
        return scale * (self.body(x) / tau).softmax(-1).square().mean() * self.config.steps


class Warmed(Annealed):
    """Branches on a float."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * min(1.0, self.config.beta / 4)


def trained(model: Annealed, called: nn.Module) -> list[float]:
    found = []
    for k in range(12):
        torch.manual_seed(k)
        model.config.beta, model.rates["tau"] = 1 + k / 7, 1 / (1 + k / 3)
        model.config.steps = 3 if k < 9 else 5
        model.zero_grad()
        loss = called(X)
        loss.backward()
        found += [loss.item(), *(float(p.grad.sum()) for p in model.parameters())]
    return found


@pytest.mark.filterwarnings("ignore:the planned step was traced")
@pytest.mark.parametrize(("cls", "most"), [(Annealed, 3), (Warmed, 12)])
def test_a_float_that_changes_at_every_call_is_traced_once(
    cls: type[Annealed], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    own = Variants._traced
    monkeypatch.setattr(
        Variants, "_traced", lambda *args: (made := own(*args), traces.append(made))[0]
    )
    model = cls()
    planned = planner.fit(model, "1GB", inputs=X).apply(model)
    assert trained(model, planned) == trained(plain := cls(), plain)
    assert len(traces) <= most
