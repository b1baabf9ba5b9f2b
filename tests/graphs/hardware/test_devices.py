"""The device table: every row has a source, and its figures hang together."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import psutil
import pytest

from planner.graphs.hardware.devices import (
    DEVICES,
    ROWS,
    Device,
    Kernel,
    Node,
    device,
    in_table,
    reported,
)
from planner.graphs.hardware.table.row import DeviceRow


@pytest.mark.parametrize("row", DEVICES.values(), ids=list(DEVICES))
def test_every_row_has_a_source_and_plausible_figures(row: Device) -> None:
    assert "data sheet" in row.source or "white paper" in row.source or "spec" in row.source
    assert "{" not in row.source
    assert row.peak_flops["float32"] <= row.peak_flops["float16"]
    assert row.peak_flops.get("tf32", 0) <= row.peak_flops["float16"]
    assert row.peak_flops.get("float8_e5m2", 1e18) > 1.9 * row.peak_flops["float16"]
    assert 1e11 < row.bandwidth < 1e13
    assert 0 <= row.scale_up < row.bandwidth
    assert 15e9 < row.host_link <= (450e9 if row.name.startswith("G") else 63e9)
    assert 0.5 * 2**30 <= row.reserve_bytes < 0.15 * row.memory_bytes


@pytest.mark.parametrize("row", DEVICES.values(), ids=list(DEVICES))
def test_every_row_has_its_final_columns(row: Device) -> None:
    assert row.node is not None
    assert row.node.source
    assert row.scale_up or row.node.devices <= 8  # more than that hang together by a link
    assert row.architecture
    products = 0.53 if row.architecture == "sm_90" else 0.7
    ampere = row.architecture == "sm_80"
    assert row.efficiency(Kernel.PRODUCT) == products
    assert row.efficiency(Kernel.ATTENTION) == (0.55 if ampere else products)
    assert row.efficiency(Kernel.CONVOLUTION) == (0.35 if ampere else products)
    assert row.efficiency(Kernel.MEMORY) == 0.75


def test_an_efficiency_of_its_own_counts_for_its_kernels_alone() -> None:
    slow = replace(device("L4"), convolution_efficiency=0.35)
    assert slow.flops_per_second("float32", Kernel.CONVOLUTION) == 30.3e12 * 0.35
    assert slow.flops_per_second("float32") == device("L4").flops_per_second("float32")
    assert slow.bytes_per_second() == 300e9 * 0.75


@pytest.mark.parametrize(
    ("name", "box_gigabytes"),
    [("A100-40GB", 40), ("A100-80GB", 80), ("H100-SXM", 80), ("L4", 24), ("H200", 141)],
)
def test_capacity_is_what_is_left_of_the_number_on_the_box(name: str, box_gigabytes: int) -> None:
    assert 0.9 * box_gigabytes * 2**30 < device(name).memory_bytes < box_gigabytes * 2**30


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("V100-16GB", "float32", 15.7),
        ("V100-16GB", "float16", 125),
        ("A100-40GB", "tf32", 156),
        ("A100-80GB", "bfloat16", 312),
        ("H100-SXM", "bfloat16", 989),
        ("H100-SXM", "float8_e4m3fn", 1979),
        ("L4", "bfloat16", 121),
        ("MI300X", "bfloat16", 1307.4),
        ("T4", "float16", 65),
        ("A10", "bfloat16", 125),
        ("A10G", "bfloat16", 70),
        ("A40", "tf32", 74.8),
        ("H100-NVL", "bfloat16", 835.5),
        ("H20", "bfloat16", 148),
        ("L40", "bfloat16", 181),
        ("B300", "bfloat16", 2250),
        ("GB200", "bfloat16", 2500),
        ("MI250X", "bfloat16", 191.5),  # one of the two devices that torch sees
        ("MI355X", "bfloat16", 2516.6),
        ("RTX-3090", "bfloat16", 71),  # with float32 accumulation
        ("RTX-5090", "bfloat16", 209.5),
        ("RTX-A6000", "bfloat16", 154.8),
        ("RTX-PRO-6000", "bfloat16", 503.8),
    ],
)
def test_published_dense_peaks(name: str, dtype: str, teraflops: float) -> None:
    assert device(name).peak_flops[dtype] == pytest.approx(teraflops * 1e12)


def test_a_dtype_without_units_of_its_own_runs_like_float32() -> None:
    volta = device("V100-32GB")
    assert volta.flops_per_second("bfloat16") == volta.flops_per_second("float32")
    assert volta.flops_per_second("tf32") == volta.flops_per_second("float32")


@pytest.mark.parametrize("name", DEVICES)
def test_every_row_is_found_by_its_name_however_written(name: str) -> None:
    row = DEVICES[name]
    assert row.name == name
    for said in (name, name.lower(), name.replace("-", " "), f"NVIDIA {name}", name.upper()):
        assert device(said) is row
    assert in_table(name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.device.name)
def test_every_word_of_a_row_leads_to_it(row: DeviceRow) -> None:
    for word in row.words:
        said = f"{row.device.name} {word}"
        assert device(said) is row.device


def test_names_are_forgiving_and_unknown_ones_list_the_known() -> None:
    assert device("h100_sxm") is device("H100 SXM") is DEVICES["H100-SXM"]
    with pytest.raises(
        ValueError,
        match=r"'TPU'; known: cpu, .*H100-SXM, H100-PCIe.*; or pass a Device, or the path",
    ):
        device("TPU")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("A100-40GB", "A100-40GB"),
        ("a100 80g", "A100-80GB"),
        ("A100 SXM 80 GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("H100-SXM5-80GB", "H100-SXM"),
        ("H100 PCIe 80GB", "H100-PCIe"),
        ("h200 141GiB", "H200"),
        ("B200 SXM", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("4090", "RTX-4090"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("A100 PCIe 80GB", "A100-PCIe-80GB"),
        ("A100 40GB PCIe", "A100-PCIe-40GB"),
        ("A6000", "RTX-A6000"),
        ("RTX 6000 Ada", "RTX-6000-Ada"),
        ("quadro rtx 6000", "Quadro-RTX-6000"),
        ("RTX Pro 6000 Blackwell", "RTX-PRO-6000"),
        ("4070 Ti Super", "RTX-4070-Ti-SUPER"),
        ("3080 10GB", "RTX-3080-10GB"),
        ("H200 NVL", "H200-NVL"),
        ("GH200 96GB", "GH200-96GB"),
        ("B300 288GB", "B300"),
        ("7900 XTX", "RX-7900-XTX"),
    ],
)
def test_names_as_people_write_them(said: str, name: str) -> None:
    assert device(said).name == name


@pytest.mark.parametrize(
    "said",
    [
        "A100 64GB",
        "H100 96GB",
        "H800 PCIe",
        "RTX 6000",
        "RTX 5090 D",
        "L40-48Q",
        "80GB",
        "NVIDIA",
        "",
    ],
)
def test_a_card_the_table_lacks_is_not_taken_for_another(said: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{said}'; known: cpu, V100-16GB"):
        device(said)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("A100", "A100-40GB, A100-80GB, A100-PCIe-40GB or A100-PCIe-80GB"),
        ("A100 PCIe", "A100-PCIe-40GB or A100-PCIe-80GB"),
        ("NVIDIA GeForce RTX 3080", "RTX-3080-10GB or RTX-3080-12GB"),
        ("GH200", "GH200-96GB or GH200-144GB"),
    ],
)
def test_a_name_of_several_cards_says_which(said: str, names: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{said}'; it may be {names}: say which$"):
        device(said)


@pytest.mark.parametrize("said", ["H100", "h100 80GB", "NVIDIA H100", "H100 80 GB"])
def test_a_name_without_a_form_is_the_module(said: str) -> None:
    assert device(said).name == "H100-SXM"
    with pytest.raises(ValueError, match=r"no figures for 'NVIDIA H100' with 20\.0 GiB"):
        reported("NVIDIA H100", 20 * 2**30)


def test_a_device_stands_for_itself() -> None:
    mine = Device("mine", {"float32": 1e12}, 2**34, 1e11)
    assert device(mine) is mine
    assert not in_table("mine")


def test_the_cpu_is_this_machine_and_reserves_nothing() -> None:
    cpu = device("CPU")
    assert cpu.memory_bytes == psutil.virtual_memory().total
    assert cpu.reserve_bytes == 0
    assert 1e9 < cpu.flops_per_second("float32") < 1e14
    assert cpu == device("cpu")


def test_a_device_is_a_value() -> None:
    gpu = device("H200")
    assert pickle.loads(pickle.dumps(gpu)) == gpu
    assert len({gpu, device("H200"), device("L4")}) == 2


def test_a_device_without_float32_or_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="x: peak_flops needs a positive rate for float32"):
        Device("x", {"bfloat16": 1.0}, 2**34, 1.0, 0, 0, "")
    with pytest.raises(ValueError, match="x: bandwidth or memory is not positive"):
        Device("x", {"float32": 1.0}, 2**20, 1.0, 0, 0, "")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": " "}, "a device without a name"),
        ({"peak_flops": {"float32": float("nan")}}, "a positive rate for float32"),
        ({"bandwidth": float("inf")}, "bandwidth or memory"),
        ({"memory_bytes": 24e9}, "memory_bytes is 24000000000.0: expected a whole number from 0"),
        ({"reserve_bytes": -1}, "reserve_bytes is -1: expected a whole number from 0"),
        ({"granularity_bytes": 0}, "granularity_bytes is 0: expected a whole number from 1"),
        ({"scale_up": -1.0}, r"scale_up is -1\.0: expected a number from 0"),
        ({"host_link": float("inf")}, "host_link is inf: expected a number from 0"),
        ({"compute_efficiency": 0}, "compute_efficiency is 0: expected a fraction up to 1"),
        (
            {"attention_efficiency": 1.5},
            r"attention_efficiency is 1\.5: expected a fraction up to 1",
        ),
    ],
)
def test_columns_that_make_no_sense_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(device("L4"), **columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((0, 1e9, ""), "a node of 0 devices: expected a whole number from 1"),
        ((True, 1e9, ""), "a node of True devices"),
        ((8, 0, ""), "a network of 0 bytes/s: expected more than 0"),
        ((8, 1e9, "", 0), "host_memory_bytes of a node is 0"),
        ((8, 1e9, "", None, -1), "disk_bytes_per_second of a node is -1: expected more than 0, or"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(columns: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Node(*columns)


@pytest.mark.parametrize(
    ("driver", "gibibytes", "name"),
    [
        ("Tesla V100-SXM2-16GB", 15.8, "V100-16GB"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100-32GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.3, "A100-PCIe-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.2, "H100-SXM"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIe"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA B200", 178.4, "B200"),
        ("AMD Instinct MI300X", 191.7, "MI300X"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA L4", 22.0, "L4"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX-4090"),
        ("Tesla T4", 14.7, "T4"),
        ("Tesla P100-SXM2-16GB", 15.9, "P100-16GB"),
        ("Tesla P100-PCIE-16GB", 15.9, "P100-PCIe-16GB"),
        ("Tesla V100-PCIE-32GB", 31.7, "V100-PCIe-32GB"),
        ("Tesla V100S-PCIE-32GB", 31.7, "V100S-32GB"),
        ("NVIDIA A10", 22.2, "A10"),
        ("NVIDIA A10G", 22.2, "A10G"),
        ("NVIDIA A30", 23.6, "A30"),
        ("NVIDIA A40", 44.4, "A40"),
        ("NVIDIA A800-SXM4-80GB", 79.3, "A800-80GB"),
        ("NVIDIA H100 NVL", 93.1, "H100-NVL"),
        ("NVIDIA H20", 95.1, "H20"),
        ("NVIDIA H20-3e", 139.8, "H20-3e"),
        ("NVIDIA H800", 79.1, "H800"),
        ("NVIDIA H200 NVL", 139.8, "H200-NVL"),
        ("NVIDIA GH200 480GB", 94.5, "GH200-96GB"),
        ("NVIDIA GH200 120GB", 94.5, "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", 142.5, "GH200-144GB"),
        ("NVIDIA GB200", 184.3, "GB200"),
        ("NVIDIA B300 SXM6 AC", 267.7, "B300"),
        ("NVIDIA L40", 44.3, "L40"),
        ("NVIDIA L20", 44.5, "L20"),
        ("NVIDIA RTX A6000", 47.5, "RTX-A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "RTX-6000-Ada"),
        ("Quadro RTX 8000", 47.5, "Quadro-RTX-8000"),
        ("NVIDIA TITAN RTX", 23.6, "TITAN-RTX"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 95.0, "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 95.0, "RTX-PRO-6000-Max-Q"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.0, "RTX-PRO-6000-Server"),
        ("NVIDIA GeForce RTX 2080 Ti", 10.8, "RTX-2080-Ti"),
        ("NVIDIA GeForce RTX 3060", 11.8, "RTX-3060"),
        ("NVIDIA GeForce RTX 3080", 9.8, "RTX-3080-10GB"),
        ("NVIDIA GeForce RTX 3080", 11.8, "RTX-3080-12GB"),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, "RTX-3090-Ti"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.7, "RTX-4060-Ti-16GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, "RTX-4070-Ti-SUPER"),
        ("NVIDIA GeForce RTX 5090", 31.4, "RTX-5090"),
        ("AMD Instinct MI300X VF", 191.7, "MI300X"),
        ("AMD Instinct MI325X", 255.7, "MI325X"),
        ("AMD Instinct MI250X", 64, "MI250X"),
        ("AMD Instinct MI250X / MI250", 64, "MI250"),
        ("AMD Instinct MI210", 64, "MI210"),
        ("AMD Radeon RX 7900 XTX", 24, "RX-7900-XTX"),
    ],
)
def test_a_card_is_known_by_the_name_its_driver_reports(
    driver: str, gibibytes: float, name: str
) -> None:
    card = reported(driver, int(gibibytes * 2**30))
    assert card.name == name
    assert card.memory_bytes == int(gibibytes * 2**30)


@pytest.mark.parametrize(
    ("driver", "gibibytes"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6),
        ("NVIDIA RTX 4090 Laptop GPU", 23.5),
        ("NVIDIA GeForce RTX 4090 D", 23.5),
        ("NVIDIA GeForce RTX 3060", 7.8),  # a card of the same name with less of everything
        ("NVIDIA A100-SXM-64GB", 63.4),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5),
        ("NVIDIA H100 80GB HBM3 MIG 7g.80gb", 79.1),
        ("AMD Instinct MI300X", 24.0),  # in partitions
        ("Quadro RTX 6000 with Max-Q Design", 23.6),
    ],
)
def test_a_card_like_one_in_the_table_is_not_taken_for_it(driver: str, gibibytes: float) -> None:
    with pytest.raises(ValueError, match=f"no figures for '{driver}' with {gibibytes} GiB in the"):
        reported(driver, round(gibibytes * 2**30))
