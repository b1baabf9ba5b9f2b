"""Devices as files: what is written is read again, and what is damaged is told apart."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from planner.graphs.hardware.device_files import load_device, save_device
from planner.graphs.hardware.devices import DEVICES, Device, device

LEAST = {
    "format": "remat-planner-device",
    "version": 1,
    "name": "mine",
    "peak_flops": {"float32": 20e12, "bfloat16": 4e13},
    "memory_bytes": 24e9,
    "bandwidth": 5e11,
}


def written(folder: Path, body: Any) -> Path:
    path = folder / "card.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


@pytest.mark.parametrize("name", ["cpu", *DEVICES])
def test_a_round_trip(name: str, tmp_path: Path) -> None:
    save_device(device(name), tmp_path / "card.json")
    assert load_device(tmp_path / "card.json") == device(name)
    assert device(tmp_path / "card.json") == device(str(tmp_path / "card.json")) == device(name)
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_what_has_a_default_may_be_left_out(tmp_path: Path) -> None:
    mine = device(written(tmp_path, LEAST))
    assert mine == Device("mine", LEAST["peak_flops"], 24_000_000_000, 5e11)
    assert isinstance(mine.memory_bytes, int)
    needed = [column.name for column in fields(Device) if column.default is MISSING]
    assert needed == [key for key in LEAST if key not in ("format", "version")]


def test_a_node_may_be_given(tmp_path: Path) -> None:
    body = LEAST | {"node": {"devices": 4, "network": 25e9, "source": "ours"}, "scale_up": 3e11}
    node = device(written(tmp_path, body)).node
    assert node is not None
    assert (node.devices, node.host_memory_bytes) == (4, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is not JSON"),
        (json.dumps(LEAST)[:-9], "is not JSON .truncated"),
        ([], r"expected a JSON object with format 'remat-planner-device', found \[\]"),
        ({**LEAST, "format": "other"}, "expected a JSON object with format"),
        ({**LEAST, "version": 2}, "version 2 is not 1: update the package"),
        (
            {**LEAST, "memory": 1},
            "unknown column memory; the columns are name, peak_flops, memory_",
        ),
        ({k: v for k, v in LEAST.items() if k != "bandwidth"}, "bandwidth is missing; needed are"),
        ({**LEAST, "name": 3}, "name is 3: expected a text"),
        ({**LEAST, "bandwidth": "fast"}, "bandwidth is 'fast': expected a number"),
        ({**LEAST, "bandwidth": True}, "bandwidth is True: expected a number"),
        ({**LEAST, "bandwidth": None}, "bandwidth is None: expected a number"),
        ({**LEAST, "bandwidth": float("nan")}, "bandwidth is nan: expected a number"),
        ({**LEAST, "memory_bytes": 0.5}, r"memory_bytes is 0\.5: expected a whole number"),
        ({**LEAST, "memory_bytes": "24GB"}, "memory_bytes is '24GB': expected a whole number"),
        (
            {**LEAST, "peak_flops": 1e12},
            "peak_flops is .*: expected an object of dtypes and FLOP/s",
        ),
        (
            {**LEAST, "peak_flops": {"float32": "1"}},
            "peak_flops is .*: expected an object of dtype",
        ),
        ({**LEAST, "peak_flops": {"float16": 1e12}}, "mine: peak_flops needs a positive rate for"),
        (
            {**LEAST, "compute_efficiency": 2},
            "compute_efficiency is 2: expected a fraction up to 1",
        ),
        ({**LEAST, "node": 8}, "node is 8: expected an object of a node's columns, or null"),
        (
            {**LEAST, "node": {"devices": 8}},
            r"node\.network is missing; needed are devices, network",
        ),
        ({**LEAST, "node": {"gpus": 8}}, r"unknown column node\.gpus; the columns are devices,"),
        (
            {**LEAST, "node": {"devices": "8", "network": 1e9, "source": ""}},
            r"node\.devices is '8': expected a whole number",
        ),
        ({**LEAST, "node": {"devices": 0, "network": 1e9, "source": ""}}, "a node of 0 devices"),
    ],
)
def test_what_is_no_device_says_why(body: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, body)
    with pytest.raises(ValueError, match=message) as caught:
        device(path)
    assert str(caught.value).startswith(str(path))


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file.*; save_device"):
        device(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        device(tmp_path / "folder.json")
