"""The page on sharding says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from planner.graphs.hardware.cluster import cluster
from planner.graphs.hardware.devices import DEVICES

PAGE = (Path(__file__).parents[1] / "docs" / "sharding.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| (\S+) \| (\d+) \| (\S+) GB/s \| (\S+) GB/s( \(assumed\))? \| (\S+) GB/s \|$", re.M
)
ROWS = {row[0]: row for row in ROW.findall(PAGE)}


@pytest.mark.parametrize("name", DEVICES)
def test_links(name: str) -> None:
    made = cluster(name, 16)
    _, per_node, inside, between, assumed, host = ROWS[name]
    assert made.devices_per_node == int(per_node)
    rates = (made.scale_up, made.scale_out, made.host)
    assert [rate.bytes_per_second / 1e9 for rate in rates] == [
        pytest.approx(float(rate)) for rate in (inside, between, host)
    ]
    assert made.scale_out.source.startswith("assumed") == bool(assumed)


def test_named_files_exist() -> None:
    for path in re.findall(r"`((?:graphs|planner)/[\w/]+\.py)`", PAGE):
        assert (Path(__file__).parents[1] / path).exists(), path
