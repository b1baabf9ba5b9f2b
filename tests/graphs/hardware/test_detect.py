"""The device at hand: its row, or an estimate from what its driver says of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.graphs.hardware import detect
from planner.graphs.hardware.cluster import cluster
from planner.graphs.hardware.detect import described, device_at, local_device
from planner.graphs.hardware.devices import device


def card(**properties: Any) -> SimpleNamespace:
    """Report as a driver does: clocks in kHz, the width of the memory in bits."""
    plain = {"name": "NVIDIA Some Card", "total_memory": 16 * 2**30, "gcnArchName": ""}
    return SimpleNamespace(**(plain | properties))


def nvidia(capability: str, units: int, mhz: float, memory_mhz: float, bits: int) -> Any:
    major, _, minor = capability.partition(".")
    return card(
        major=int(major),
        minor=int(minor),
        multi_processor_count=units,
        clock_rate=int(mhz * 1e3),
        memory_clock_rate=int(memory_mhz * 1e3),
        memory_bus_width=bits,
    )


def test_a_card_of_the_table_is_its_row() -> None:
    found = described(card(name="NVIDIA A100-PCIE-40GB", total_memory=int(39.5 * 2**30)))
    assert found.peak_flops == device("A100-PCIe-40GB").peak_flops
    assert found.memory_bytes == int(39.5 * 2**30)


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("V100-32GB", nvidia("7.0", 80, 1530, 877, 4096)),
        ("A100-40GB", nvidia("8.0", 108, 1410, 1215, 5120)),
        ("RTX-3090", nvidia("8.6", 82, 1695, 9751, 384)),
        ("RTX-4090", nvidia("8.9", 128, 2520, 10501, 384)),
        ("H100-SXM", nvidia("9.0", 132, 1980, 2619, 5120)),
        ("B200", nvidia("10.0", 148, 1965, 3996, 8192)),
        ("RTX-5090", nvidia("12.0", 170, 2407, 14001, 512)),
    ],
)
def test_an_estimate_of_a_known_card_is_near_its_sheet(name: str, reported: Any) -> None:
    found, sheet = described(reported), device(name)
    assert found.name == "NVIDIA Some Card"
    assert found.peak_flops.keys() == sheet.peak_flops.keys()
    for dtype, rate in sheet.peak_flops.items():
        assert found.peak_flops[dtype] == pytest.approx(rate, rel=0.1)
    assert found.bandwidth == pytest.approx(sheet.bandwidth, rel=0.03)
    assert found.source == ("estimated from what the driver reports; assumed: PCIe 3 to the host")


@pytest.mark.parametrize(
    ("name", "architecture", "units", "mhz"),
    [
        ("MI300X", "gfx942:sramecc+:xnack-", 304, 2100),
        ("MI355X", "gfx950", 256, 2400),
        ("MI250X", "gfx90a:sramecc+:xnack-", 110, 1700),
        ("RX-7900-XTX", "gfx1100", 96, 2500),
    ],
)
def test_an_estimate_of_a_known_amd_card_is_near_its_sheet(
    name: str, architecture: str, units: int, mhz: float
) -> None:
    found = described(
        card(gcnArchName=architecture, multi_processor_count=units, clock_rate=int(mhz * 1e3))
    )
    sheet = device(name).peak_flops
    assert found.peak_flops.keys() == sheet.keys()
    for dtype, rate in sheet.items():
        assert found.peak_flops[dtype] == pytest.approx(rate, rel=0.02)


def test_a_laptop_is_slower_than_its_namesake() -> None:
    laptop = nvidia("8.9", 76, 2040, 9001, 256)
    laptop.name = "NVIDIA GeForce RTX 4090 Laptop GPU"
    found = described(laptop)
    assert found.name == laptop.name
    assert found.flops_per_second("bfloat16") < 0.6 * device("4090").flops_per_second("bfloat16")
    assert found.bandwidth == pytest.approx(576e9, rel=0.01)


@pytest.mark.parametrize(
    ("reported", "assumed"),
    [
        (card(), "PCIe 3 to the host, 5 TFLOP/s, memory of 150 GB/s"),
        (card(multi_processor_count=20, major=8, minor=6), "a clock of 1.2 GHz, memory of 150 GB"),
        (card(multi_processor_count=20, major=99, minor=0), "a clock of 1.2 GHz"),
        (card(multi_processor_count=20, gcnArchName="gfx9999"), "a clock of 1.2 GHz"),
        (card(name=" "), "5 TFLOP/s"),
        (card(total_memory=2**30), "5 TFLOP/s"),
    ],
)
def test_what_a_driver_leaves_out_is_assumed_and_said(reported: Any, assumed: str) -> None:
    found = described(reported)
    assert found.source.startswith("estimated from what the driver reports; assumed: PCIe 3")
    assert assumed in found.source
    assert 1e11 < found.flops_per_second("float32") < 1e13
    assert found.name in {"NVIDIA Some Card", "unnamed device"}


def test_estimated_cards_hang_together_by_their_hosts() -> None:
    made = cluster(described(nvidia("8.6", 82, 1695, 9751, 384)), 4)
    assert made.scale_up.bytes_per_second == 16e9
    assert "assumed: PCIe 3" in made.scale_up.source


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an accelerator")
def test_a_machine_without_accelerator_is_its_cpu() -> None:
    assert local_device() == device("cpu")
    with pytest.raises(ValueError, match="this machine has no 'cuda'"):
        device_at("cuda")


def test_the_device_is_the_one_the_model_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [card(), card(name="NVIDIA L4", total_memory=22 * 2**30)]
    fake = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: len(cards),
        get_device_properties=cards.__getitem__,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: fake)
    monkeypatch.setattr(detect.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(detect.torch.cuda, "get_device_properties", cards.__getitem__)
    assert device_at("cuda", 1).name == "L4"
    assert local_device().name == "NVIDIA Some Card"
    del fake.get_device_properties
    with pytest.raises(ValueError, match="torch does not describe 'mps'"):
        device_at("mps")
