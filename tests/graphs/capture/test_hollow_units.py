"""Hollow units: what a root sees of its units, and what is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planner.graphs.capture.hollow_units import HollowUnit, hollow_in, hollowed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.kind, self.gone = "full", True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(x)
        return made


def model_and_units() -> tuple[nn.Sequential, dict[str, HollowUnit]]:
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([Block(), Block()]))
    paths = ("1.0", "1.1")
    return model, {path: HollowUnit(path, model.get_submodule(path)) for path in paths}


def test_a_root_sees_attributes_and_no_parameters() -> None:
    model, units = model_and_units()
    before = list(model.named_modules())
    units["1.1"].unit.register_forward_hook(lambda *_: None)
    units["1.0"].unit.eval()
    with hollowed(model, units):
        first, second = model[1]  # type: ignore[misc]
        assert (type(first), first.kind, first.training, second.training) == (
            Block, "full", False, True,
        )  # fmt: skip
        assert [n for n, _ in first.named_parameters()] == ["anchor"]
        assert sum(p.numel() for p in model[1].parameters()) == 0
        assert not second._forward_hooks
        assert hollow_in(model) == units
        x = torch.ones(1, 2)
        assert torch.equal(first(x), units["1.0"].unit(x))  # without a stub it is the unit
    assert list(model.named_modules()) == before
    assert not hollow_in(model)


def test_what_a_root_sets_on_a_unit_stays_there() -> None:
    model, units = model_and_units()
    unit = units["1.0"].unit
    with hollowed(model, units):
        model[1][0].kind = "sliding"  # type: ignore[index]
        del model[1][0].gone  # type: ignore[index]
        unit.count = 3  # type: ignore[assignment] # by its own forward, meanwhile
    assert (unit.kind, unit.count, hasattr(unit, "gone")) == ("sliding", 3, False)
    assert units["1.1"].unit.gone
    with hollowed(model, units):
        assert model[1][0].count == 3  # type: ignore[index]


def test_units_are_back_after_an_error() -> None:
    model, units = model_and_units()
    with pytest.raises(ZeroDivisionError), hollowed(model, units):
        _ = 1 / 0
    assert model[1][0] is units["1.0"].unit  # type: ignore[index]
