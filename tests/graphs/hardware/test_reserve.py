"""What a device keeps adds up to its reserve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.graphs.hardware.columns import GIB
from planner.graphs.hardware.devices import device
from planner.graphs.hardware.reserve import CUBLAS_HOPPER_BYTES, reserve_parts


@pytest.mark.parametrize("name", ["A100-40GB", "H100-SXM", "MI300X", "L4", "cpu"])
@pytest.mark.parametrize("beside", [0, 3 * GIB])
def test_the_counted_parts_are_the_reserve(name: str, beside: int) -> None:
    row = device(name)
    row = replace(row, memory_bytes=row.memory_bytes + beside + GIB)
    row = replace(row, reserve_bytes=row.reserve_bytes + beside)
    parts = reserve_parts(row)
    assert sum(p.size_bytes or 0 for p in parts if p.counted) == row.reserve_bytes


def test_each_architecture_has_its_parts() -> None:
    hopper = {p.name: p for p in reserve_parts(device("H100-SXM"))}
    assert hopper["workspaces of cuBLAS"].size_bytes == 2 * CUBLAS_HOPPER_BYTES
    (cudnn,) = (part for name, part in hopper.items() if "cuDNN" in name)
    assert not cudnn.counted
    assert cudnn.size_bytes is None
    assert [p.name for p in reserve_parts(device("MI300X"))] == ["what the device keeps"]
