"""The device table: every row has a source, and its figures hang together."""

from __future__ import annotations

import pickle

import psutil
import pytest

from graphs.devices import DEVICES, Device, device


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
