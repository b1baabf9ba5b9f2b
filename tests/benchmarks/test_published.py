"""Published measurements as cases: which row is which, and what is said of the others."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import published
from benchmarks.published import Built, Case, Row


def small() -> Built:
    layers = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))
    return Summed(layers), {"x": torch.empty(4096, 512)}, 4096


class Summed(nn.Module):
    """Layers and a loss."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(x).square().mean()
        return made


def test_rows_are_predicted_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        published, "CASES", {("source", "small"): Case(small, "A100-40GB", "allocated")}
    )
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["source", "configuration", "gib_published", "samples_or_tokens_per_second_per_gpu"]
        )
        writer.writerow(["a source", "a small model", "0.1", ""])
        writer.writerow(["a source", "large, FSDP", "", "3"])
    row, missing = published.rows_of(path)
    assert isinstance(row, Row)
    assert 0.03 < row.predicted_gib < 0.3
    assert (
        missing
        == "a source: large, FSDP: a recipe over several devices, given and not searched for"
    )
    said = list(published.medians([row]))
    assert said == ["memory, allocated, no autocast: 1 rows, too few for a median"]


def test_reserved_is_more_than_allocated_and_checkpointing_less() -> None:
    case = Case(small, "A100-40GB", "allocated")
    allocated, speed = published.predicted(case)
    reserved, _ = published.predicted(Case(small, "A100-40GB", "reserved"))
    half, faster = published.predicted(Case(small, "A100-40GB", "allocated", dtype=torch.bfloat16))
    assert half < allocated < reserved
    assert faster > speed
