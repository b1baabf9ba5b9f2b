"""What a unit is: which modules are found, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planner.errors import CaptureError
from planner.sharding.wrapped.unit_captures import capture_units
from planner.sharding.wrapped.unit_choice import find_units
from tests.planner.sharding.blocks import batch, decoder


def test_units_that_are_called_twice_or_share_parameters_stay_with_the_root() -> None:
    model = decoder(4)
    model.h[1].up = model.h[0].up  # type: ignore[union-attr]
    assert list(find_units(model)) == ["h.2", "h.3"]


def test_units_can_be_named() -> None:
    model = decoder(2)
    assert capture_units(model, batch(), units=["h.1"]).units == ("h.1",)
    with pytest.raises(CaptureError, match=r"unit 'h\.7' is not the path"):
        capture_units(model, batch(), units=["h.7"])
    with pytest.raises(CaptureError, match="no repeated blocks"):
        capture_units(nn.Linear(2, 2), torch.zeros(1, 2))
