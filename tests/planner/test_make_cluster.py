"""Clusters as people say them."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from planner.byte_sizes import parse_rate
from planner.graphs.hardware.cluster import Link
from planner.graphs.hardware.devices import Device
from planner.make_cluster import make_cluster

MINE = Device("mine", {"float32": 1e12}, 2**34, 1e11)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("300GB/s", 300e9),
        ("300 GBps", 300e9),
        ("25.5GB/s", 25.5e9),
        ("1TB/s", 1e12),
        ("1GiB/s", 2**30),
        ("400Gb/s", 50e9),
        ("400 Gbit/s", 50e9),
        ("100Gbps", 12.5e9),
        ("10Mb/s", 1.25e6),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "300", "GB/s", "300GB", "-3GB/s", "300XB/s", "3e9GB/s"])
def test_texts_that_are_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate: write '300GB/s' \(bytes\)"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("link", "rate"),
    [
        ("NDR", 50e9),
        ("ndr", 50e9),
        ("400Gb/s", 50e9),
        (5e10, 5e10),
        ({"scale_out": "50GB/s"}, 5e10),
    ],
)
def test_links(link: Any, rate: float) -> None:
    assert make_cluster("A100 40GB", 16, link=link).scale_out.bytes_per_second == rate


def test_a_link_passes_as_it_is() -> None:
    mine = Link(1e9, 0, 1, "mine")
    assert make_cluster("L4", 2, link={"host": mine}).host is mine


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "A100-40GB", "world_size": 12}, planner.BadCluster, "do not divide into nodes"),
        ({"kind": "TPU", "world_size": 8}, planner.UnknownDevice, "unknown device 'TPU'; known:"),
        (
            {"kind": "L4", "world_size": 8, "link": "fast"},
            planner.BadCluster,
            "'fast' is not a rate: write '300GB/s'.*, or one of HDR, NDR, XDR",
        ),
        ({"kind": "L4", "world_size": 8, "link": "0GB/s"}, planner.BadCluster, "more than 0"),
        ({"kind": "none.json", "world_size": 8}, planner.UnknownDevice, "none.json cannot be read"),
        ({"kind": MINE, "world_size": 8}, planner.BadCluster, "of mine is not known: pass link="),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_cluster(**arguments)
