"""What a unit is: which modules are found, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from planner.errors import CaptureError
from planner.graphs import Kind
from planner.sharding.wrapped.unit_captures import capture_units
from planner.sharding.wrapped.unit_choice import find_units, large_around
from tests.planner.sharding.blocks import Decoder, batch, decoder


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


@pytest.mark.parametrize(
    ("tie", "units", "elsewhere"),
    [
        (lambda m: setattr(m.h[1], "up", m.h[0].up), ["h.0", "h.1"], "unit 'h.1'"),
        (lambda m: setattr(m.h[1].up, "weight", m.h[0].up.weight), ["h.0"], "what is in no unit"),
        (lambda m: None, ["h", "h.0"], "unit 'h'"),
    ],
)
def test_a_named_unit_that_shares_a_parameter_is_refused(
    tie: Callable[[Any], None], units: list[str], elsewhere: str
) -> None:
    """Torch shards every unit by itself, after which two of them are no longer tied."""
    model = decoder(2)
    tie(model)
    with pytest.raises(CaptureError, match=rf"of unit 'h\.0' is a parameter of {elsewhere}, too"):
        capture_units(model, batch(), units=units)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"tied": False, "vocabulary": 400}, ["embed", "head"]),
        ({"tied": True, "vocabulary": 400}, []),  # one weight, which has to be whole twice
        ({"tied": False, "vocabulary": 64}, []),  # small beside a block
    ],
)
def test_a_large_embedding_and_head_are_units(options: dict[str, float], found: list[str]) -> None:
    model = decoder(2, **options)
    assert list(large_around(model, find_units(model))) == found
    units = capture_units(model, batch()).units
    assert units == ("embed", "h.0", "h.1", "head") if found else ("h.0", "h.1")


def test_hooks_are_the_roots() -> None:
    model = decoder(2, tied=False, vocabulary=400)
    model.embed.register_forward_hook(lambda module, args, found: found * 2)
    assert list(large_around(model, find_units(model))) == ["head"]
    assert capture_units(model, batch()).units == ("h.0", "h.1", "head")


class Functional(Decoder):
    """Ties its head by reading the weight of another module."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.h:
            x = block(x, scale=self.scale)
        return (x @ self.embed.weight.mT).square().mean()


def test_what_is_read_outside_its_module_stays_with_the_root() -> None:
    model = Functional(2, tied=False, vocabulary=400)
    found = capture_units(model, batch())
    assert found.units == ("h.0", "h.1")
    assert "embed.weight" in [p.name for p in found.root.parameters]
    with pytest.raises(CaptureError, match=r"embed\.weight is read outside its unit 'embed'"):
        capture_units(model, batch(), units=["embed", "h.0"])


def test_a_block_whose_weight_is_read_outside_it_is_an_error() -> None:
    class Peeking(Decoder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + self.h[0].up.weight.square().mean()  # type: ignore[union-attr, operator]

    with pytest.raises(CaptureError, match=r"h\.0\.up\.weight is read outside its unit 'h\.0'"):
        capture_units(Peeking(2), batch())


@pytest.mark.parametrize("read", ["mean", "shape"])
def test_units_parameters_are_no_inputs_of_the_root_and_are_noticed_if_read(read: str) -> None:
    class Last(Decoder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            *_, last = self.h[1].parameters()
            told = last.square().mean() if read == "mean" else last.shape[0]
            return super().forward(ids) + told  # type: ignore[operator]

    if read == "mean":
        with pytest.raises(CaptureError, match=r"h\.1\.\S+ is read outside its unit 'h\.1'"):
            capture_units(Last(2), batch())
        return
    found = capture_units(Last(2), batch())
    held = [found.root.graph.values[v] for v in found.root.graph.resident]
    names = [x.name for x in held if x.kind is Kind.PARAMETER and x.name.startswith("h.")]
    first = [next(n for n, _ in block.named_parameters()) for block in Last(2).h]
    assert names == [f"h.{i}.{n}" for i, n in enumerate(first)]  # what the operator takes


class _Weights(nn.Embedding):
    """Hands out what lies in its weight, as embeddings of positions may."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[:1].expand(*ids.shape, -1)


class _Odd(Decoder):
    """A decoder that does something else with its head, or with its embedding."""

    def __init__(self, how: str) -> None:
        super().__init__(2, tied=False, vocabulary=400)
        self.how = how
        if how == "hands out its weight":
            self.embed = _Weights(400, self.norm.weight.numel())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.how == "is called past its hooks":
            x = self.embed.forward(ids)
        else:
            with torch.set_grad_enabled(self.how != "is called without gradients"):
                x = self.embed(ids)
        for block in self.h:
            x = block(x, scale=self.scale)
        if self.how == "is of no use to the loss":
            self.head(x)
            return x.square().mean()
        return self.head(x).square().mean()


@pytest.mark.parametrize(
    ("how", "units"),
    [
        ("hands out its weight", ("h.0", "h.1", "head")),
        ("is called past its hooks", ("h.0", "h.1", "head")),
        ("is called without gradients", ("h.0", "h.1")),
        ("is of no use to the loss", ("h.0", "h.1")),
    ],
)
def test_a_layer_that_cannot_be_a_unit_stays_with_the_root(how: str, units: list[str]) -> None:
    assert capture_units(_Odd(how), batch()).units == units
