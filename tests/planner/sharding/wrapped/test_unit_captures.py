"""A model taken apart: which units, which share a capture, and what lies at the borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from planner.graphs import Phase
from planner.graphs.capture.training_step import capture
from planner.sharding.wrapped import unit_captures
from planner.sharding.wrapped.unit_captures import ModelCapture, capture_units
from tests.planner.sharding.blocks import Decoder, batch, decoder


def taken_apart(model: nn.Module, **options: object) -> ModelCapture:
    return capture_units(model, batch(), **options)  # type: ignore[arg-type]


def test_alike_units_share_one_capture() -> None:
    found = taken_apart(decoder(4))
    assert found.units == ("h.0", "h.1", "h.2", "h.3")
    assert found.kind_of == (0, 0, 0, 0)
    assert [p.name for p in found.root.parameters] == ["embed.weight", "norm.weight", "norm.bias"]


def test_blocks_in_wrappers_that_hide_their_names() -> None:
    """``checkpoint_wrapper`` leaves its own attribute out of the names of its parameters."""
    model = decoder(2)
    for i, block in enumerate(model.h):
        model.h[i] = checkpoint_wrapper(block)
    found, plain = taken_apart(model), taken_apart(decoder(2))
    assert found.units == plain.units
    assert [p.shape for p in found.kinds[0].parameters] == [
        p.shape for p in plain.kinds[0].parameters
    ]


def test_a_number_that_is_not_the_position_counts() -> None:
    model = decoder(3)
    model.h[1].dropout.p = 0.1
    assert taken_apart(model).kind_of == (0, 1, 0)


def test_an_int_that_happens_to_be_the_units_number_is_not_its_position() -> None:
    model = decoder(3)
    for block in model.h:
        block.groups = 2  # type: ignore[assignment]
    assert taken_apart(model).kind_of == (0, 0, 0)


def test_root_and_units_cost_what_the_whole_does() -> None:
    model = decoder(3)
    found, whole = taken_apart(model), capture(model, batch(), optimizer=None).graph
    opaque = {i for call in found.root.calls for i in (call.forward, call.backward)}
    around = sum(op.flops for i, op in enumerate(found.root.graph.ops) if i not in opaque)
    inside = sum(op.flops for k in found.kind_of for op in found.kinds[k].graph.ops)
    assert around + inside == sum(op.flops for op in whole.ops) > 0


def test_borders_meet() -> None:
    found = taken_apart(decoder(2))
    first, second = found.root.calls
    assert first.outputs[0] == second.inputs[0]
    assert second.gradients[0] == first.tangents[0]
    assert second.gradients[1] is None  # the scale is a buffer
    ops = found.root.graph.ops
    assert [ops[c.backward].phase for c in found.root.calls] == [Phase.BACKWARD] * 2
    unit = found.kind(0)
    assert unit.input_gradients[0] is not None
    assert all(p.gradient is not None for p in unit.parameters)


def test_meta_gives_what_a_real_model_gives() -> None:
    with torch.device("meta"):
        model = Decoder(3)
    real = taken_apart(decoder(3), device="A100-80GB")
    assert taken_apart(model, device="A100-80GB") == real


def test_precision_is_that_of_the_compute_copy() -> None:
    found = taken_apart(decoder(2), precision="bfloat16")
    parameter = found.kind(0).parameters[0]
    assert (parameter.itemsize, parameter.shape) == (4, (32,))
    assert found.kind(0).graph.values[parameter.value].size_bytes == 2 * 32


def test_workspace_is_measured_in_the_precision_of_compute() -> None:
    model = decoder(2).bfloat16()
    cast = taken_apart(decoder(2), precision="bfloat16").kind(0).graph
    own = taken_apart(model).kind(0).graph
    products = [i for i, op in enumerate(own.ops) if "mm" in op.target]
    assert [cast.ops[i].workspace_bytes for i in products] == [
        own.ops[i].workspace_bytes for i in products
    ]
    assert any(own.ops[i].workspace_bytes for i in products)


def test_units_of_a_step_for_a_card_are_called_with_what_its_autocast_makes() -> None:
    """CUDA's layer norm makes single precision, a CPU's does not."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.down(self.up(x).relu())
            return made

    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), Unit(), nn.LayerNorm(16), Unit())
    said: Any = {"loss": torch.mean, "precision": "autocast", "units": ["2", "4"]}
    for name, dtype in (("A100-40GB", "float32"), ("cpu", "bfloat16")):
        found = capture_units(model, torch.zeros(4, 16), device=name, **said)
        assert found.kinds[0].signature["leaves"][0][2] == dtype


class Layer(nn.Module):
    """Alike but for its number, for what it is told, and for what its buffer says."""

    def __init__(self, number: int, *, numbered: bool, scale: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.layer_idx, self.numbered, self.scale = number, numbered, scale
        self.plus = nn.Buffer(torch.tensor([False]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.linear(x) * self.scale["by"]
        if self.plus.any():
            x = x + 1
        return x.relu() if self.numbered and self.layer_idx == 2 else x


class Layers(nn.Module):
    def __init__(self, *, numbered: bool = False, scales: Sequence[float] = (1.0,) * 4) -> None:
        super().__init__()
        self.stem, made = nn.Linear(8, 8), enumerate(scales)
        self.h = nn.ModuleList(Layer(i, numbered=numbered, scale={"by": by}) for i, by in made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.h:
            x = layer(x)
        return x.square().mean()


def kinds_found(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[int, ...], int]:
    """Return the kinds of units, and how many captures that took beside the root's."""
    captured: list[object] = []
    own = unit_captures.capture_joint
    counted = lambda *args, **options: captured.append(args) or own(*args, **options)  # noqa: E731
    monkeypatch.setattr(unit_captures, "capture_joint", counted)
    units = [f"h.{i}" for i in range(4)]
    found = capture_units(model, torch.zeros(2, 8), device="cpu", units=units)
    return found.kind_of, len(captured) - 1


def test_a_layer_that_looks_at_its_number_is_captured_and_alike_if_it_computes_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kinds_found(Layers(), monkeypatch) == ((0, 0, 0, 0), 1)
    assert kinds_found(Layers(numbered=True), monkeypatch) == ((0, 0, 1, 0), 4)


def test_what_a_unit_reads_from_a_dict_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layers(scales=(1.0, 1.0, 2.0, 1.0))
    assert kinds_found(model, monkeypatch) == ((0, 0, 1, 0), 2)


def test_what_a_unit_asks_of_its_buffer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layers()
    model.h[2].plus.fill_(True)  # type: ignore[operator, union-attr]
    assert kinds_found(model, monkeypatch) == ((0, 0, 1, 0), 2)
    assert any(
        "add" in op.name for op in capture_units(model, torch.zeros(2, 8)).kinds[1].graph.ops
    )
