"""The device table: every row has a source, and its figures hang together."""

from __future__ import annotations

import pickle

import psutil
import pytest
import torch

from planner.graphs.hardware.detect import local_device
from planner.graphs.hardware.devices import DEVICES, Device, device, reported


@pytest.mark.parametrize("row", DEVICES.values(), ids=list(DEVICES))
def test_every_row_has_a_source_and_plausible_figures(row: Device) -> None:
    assert row.source
    assert row.peak_flops["float32"] <= row.peak_flops["float16"]
    assert 1e11 < row.bandwidth < 1e13
    assert 0 <= row.scale_up < row.bandwidth
    assert 0 < row.host_link <= 63e9
    assert 0.5 * 2**30 <= row.reserve_bytes < 0.1 * row.memory_bytes


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
    ],
)
def test_published_dense_peaks(name: str, dtype: str, teraflops: float) -> None:
    assert device(name).peak_flops[dtype] == pytest.approx(teraflops * 1e12)


def test_a_dtype_without_units_of_its_own_runs_like_float32() -> None:
    volta = device("V100-32GB")
    assert volta.flops_per_second("bfloat16") == volta.flops_per_second("float32")
    assert volta.flops_per_second("tf32") == volta.flops_per_second("float32")


def test_names_are_forgiving_and_unknown_ones_list_the_known() -> None:
    assert device("h100_sxm") is device("H100 SXM") is DEVICES["H100-SXM"]
    with pytest.raises(
        ValueError, match=r"unknown device 'H100'; known: cpu, .*H100-SXM, H100-PCIe"
    ):
        device("H100")


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
    ],
)
def test_names_as_people_write_them(said: str, name: str) -> None:
    assert device(said).name == name


@pytest.mark.parametrize("said", ["A100-PCIe-80GB", "A100 64GB", "H100 96GB", "80GB", "NVIDIA", ""])
def test_a_card_the_table_lacks_is_not_taken_for_another(said: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{said}'; known: cpu, .*RTX-4090$"):
        device(said)


def test_a_name_of_two_cards_says_which() -> None:
    with pytest.raises(ValueError, match=r"'A100' may be A100-40GB or A100-80GB$"):
        device("A100")


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
    ("driver", "gibibytes", "name"),
    [
        ("Tesla V100-SXM2-16GB", 15.8, "V100-16GB"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100-32GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.3, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.2, "H100-SXM"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIe"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA B200", 178.4, "B200"),
        ("AMD Instinct MI300X", 191.7, "MI300X"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA L4", 22.0, "L4"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX-4090"),
    ],
)
def test_a_card_is_known_by_the_name_its_driver_reports(
    driver: str, gibibytes: float, name: str
) -> None:
    card = reported(driver, int(gibibytes * 2**30))
    assert card.name == name
    assert card.memory_bytes == int(gibibytes * 2**30)


@pytest.mark.parametrize("driver", ["NVIDIA L40", "NVIDIA H100 NVL", "NVIDIA RTX 4090 Laptop GPU"])
def test_a_card_like_one_in_the_table_is_not_taken_for_it(driver: str) -> None:
    with pytest.raises(ValueError, match=f"no figures for '{driver}'; name the nearest of V100"):
        reported(driver, 2**36)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an accelerator")
def test_a_machine_without_accelerator_is_its_cpu() -> None:
    assert local_device() == device("cpu")
