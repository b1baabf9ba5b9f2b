"""What plans say of devices and links of which little is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.graphs.hardware.cluster import Cluster, cluster
from planner.graphs.hardware.devices import DEVICES, Device
from planner.output.device_notes import cluster_notes, device_notes
from planner.output.plan_text import render
from planner.plans import Plan

MINE = Device("my card", {"float32": 1e12}, 2**34, 1e11, scale_up=3e10, source="our own")


def test_a_plan_says_that_its_device_is_not_in_the_table(plan: Plan) -> None:
    said = "the device my card is not in the table of devices: its speed is as given, or was"
    assert said in " ".join(render(replace(plan, device="my card")).split())
    assert "not in the table" not in render(replace(plan, device="H100-PCIe"))


@pytest.mark.parametrize("name", ["cpu", *DEVICES])
def test_devices_of_the_table_need_no_word(name: str) -> None:
    assert not list(device_notes(name))
    assert not list(cluster_notes(cluster(name, 1)))


@pytest.mark.parametrize(
    ("made", "notes"),
    [
        (cluster("cpu", 4), []),
        (cluster("A100-80GB", 16), []),
        (cluster("L40S", 4), []),  # nothing leaves the node
        (cluster("L40S", 8), ["the 12.5 GB/s between nodes of 4 are assumed, as servers of the L"]),
        (cluster("L40S", 8, link="HDR"), []),
        (
            cluster(MINE, 2),
            ["the device my card is not in the table of devices; its speed: our own"],
        ),
    ],
    ids=str,
)
def test_links_that_are_assumed_are_said(made: Cluster, notes: list[str]) -> None:
    found = list(cluster_notes(made))
    assert len(found) == len(notes)
    assert all(text.startswith(note) for text, note in zip(found, notes, strict=True))
