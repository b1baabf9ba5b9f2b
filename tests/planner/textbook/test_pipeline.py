"""Pipelines and parted layers on paper: where they are needed, and what they would hold."""

from __future__ import annotations

from typing import Any

import pytest

from planner.textbook.estimate import Estimate, estimate
from planner.textbook.pipeline import OneStage, least_pipeline, pipeline_of, pipeline_text

LLAMA: dict[str, Any] = {
    "layers": 126,
    "hidden": 16384,
    "heads": 128,
    "kv_heads": 8,
    "vocab": 128256,
    "intermediate": 53248,
    "device": "H100 SXM",
    "gpus": 512,
}


def llama(seq: int) -> Estimate:
    return estimate("405B", **LLAMA, seq=seq)


def test_the_formula() -> None:
    """Peak = states + (in flight - 1) x kept + a micro-step, for each stage."""
    found = pipeline_of(OneStage(100, 80, 7), stages=4, micro_batches=3)
    assert [s.in_flight for s in found.stages] == [3, 3, 2, 1]
    assert [s.peak_bytes for s in found.stages] == [100 + 60 + 7] * 2 + [100 + 40 + 7, 100 + 20 + 7]
    assert found.idle_fraction == 3 / 6
    assert found.peak_bytes == 167


@pytest.mark.parametrize("room", range(110, 200, 7))
def test_the_least_pipeline_fits_and_no_smaller_one_does(room: int) -> None:
    whole = OneStage(100, 80, 7)
    possible = list(range(2, 9))
    found = least_pipeline(whole, room, possible)
    tried = [
        (stages, sent)
        for stages in range(2, 9)
        for sent in range(1, stages + 1)
        if pipeline_of(whole, stages, sent).peak_bytes <= room
    ]
    if found is None:
        assert not tried
        assert "No pipeline of up to 8 stages" in pipeline_text(whole, room, possible)
        return
    assert f"a pipeline of {len(found.stages)} stages would do" in pipeline_text(
        whole, room, possible
    )
    stages = min(tried)[0]
    most = max(sent for s, sent in tried if s == stages)
    assert (len(found.stages), found.micro_batches) == (stages, most)


def test_nothing_is_said_where_whole_layers_fit() -> None:
    found = llama(512)
    assert not found.parted
    assert "parted" not in str(found)


def test_degrees_are_shown_where_whole_layers_do_not_fit() -> None:
    found = llama(8192)
    assert [(row.degree, row.fits) for row in found.parted] == [
        (1, False),
        (2, True),
        (4, True),
        (8, True),
    ]
    assert found.pipeline is None
    assert "pipeline" not in str(found)


def test_a_pipeline_is_needed_where_no_degree_fits() -> None:
    found = llama(131_072)
    assert not any(row.fits for row in found.parted)
    assert found.pipeline is not None
    usable = found.memory_bytes - found.reserve_bytes
    assert found.pipeline.peak_bytes <= usable
    assert "a pipeline would be needed" in str(found)
    assert found.to_json()["pipeline"]["micro_batches"] == found.pipeline.micro_batches


def test_where_one_layer_is_too_much_no_pipeline_would_do() -> None:
    found = llama(524_288)
    assert found.pipeline is None
    assert "no pipeline would do" in " ".join(str(found).split())
