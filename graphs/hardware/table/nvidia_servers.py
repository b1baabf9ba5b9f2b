"""Rows of NVIDIA's cards for servers, by generation."""

from __future__ import annotations

from planner.graphs.hardware.table import nvidia_nodes as nodes
from planner.graphs.hardware.table.row import NO, DeviceRow, row, sheet

_V100, _A100, _H100, _H200 = sheet("v100"), sheet("a100"), sheet("h100"), sheet("h200")
_GH200, _HGX = sheet("grace-hopper-superchip"), sheet("hgx")
_PRODUCT = "NVIDIA {} data sheet, https://www.nvidia.com/en-us/data-center/"
_A10G = "NVIDIA A10G data sheet, linked from https://aws.amazon.com/ec2/instance-types/g5/"
_P100 = "NVIDIA Tesla P100 white paper, WP-08019-001"
_EXPORT = "NVIDIA {} data sheet, as its partners print it: for markets under export rules"
_GH100 = (67, 494.5, 989, 989, 1979)
_GH100_NVL = (60, 417.5, 835.5, 835.5, 1670.5)
_GA100 = (19.5, 156, 312, 312, NO)
_GH20 = (44, 74, 148, 148, 296)
_V100_SXM, _V100_PCIE = (15.7, NO, 125, NO, NO), (14, NO, 112, NO, NO)

SERVERS: tuple[DeviceRow, ...] = (
    row("V100-16GB", _V100_SXM, 15.77, (900, 150, 16), nodes.DGX_1, _V100, "sxm"),
    row("V100-32GB", _V100_SXM, 31.73, (900, 150, 16), nodes.DGX_1, _V100, "sxm"),
    row("V100-PCIe-16GB", _V100_PCIE, 15.77, (900, 0, 16), nodes.EIGHT_50, _V100),
    row("V100-PCIe-32GB", _V100_PCIE, 31.73, (900, 0, 16), nodes.EIGHT_50, _V100),
    row("V100S-32GB", (16.4, NO, 130, NO, NO), 31.73, (1134, 0, 16), nodes.EIGHT_50, _V100, "pcie"),
    row("P100-16GB", (10.6, NO, 21.2, NO, NO), 15.89, (732, 80, 16), nodes.DGX_1, _P100, "sxm"),
    row("P100-PCIe-16GB", (9.3, NO, 18.7, NO, NO), 15.89, (732, 0, 16), nodes.EIGHT_50, _PRODUCT),
    row("T4", (8.1, NO, 65, NO, NO), 14.56, (320, 0, 16), nodes.AWS_G4DN, _PRODUCT, "16gb pcie"),
    row("A100-40GB", _GA100, 39.39, (1555, 300, 31), nodes.DGX_A100_40, _A100, "sxm"),
    row("A100-80GB", _GA100, 79.15, (2039, 300, 31), nodes.DGX_A100, _A100, "sxm"),
    row("A100-PCIe-40GB", _GA100, 39.39, (1555, 0, 31), nodes.EIGHT_200, _A100),
    row("A100-PCIe-80GB", _GA100, 79.15, (1935, 0, 31), nodes.EIGHT_200, _A100),
    # The A100 with NVLink at 400 of 600 GB/s, both directions.
    row("A800-80GB", _GA100, 79.15, (2039, 200, 31), nodes.EIGHT_200, _EXPORT, "sxm"),
    row("A800-PCIe-80GB", _GA100, 79.15, (1935, 0, 31), nodes.EIGHT_200, _EXPORT),
    row(
        "A30", (10.3, 82, 165, 165, NO), 23.5, (933, 0, 31), nodes.EIGHT_100, _PRODUCT, "24gb pcie"
    ),
    row(
        "A40",
        (37.4, 74.8, 149.7, 149.7, NO),
        44.3,
        (696, 0, 31),
        nodes.EIGHT_100,
        _PRODUCT,
        "48gb pcie",
    ),
    row(
        "A10",
        (31.2, 62.5, 125, 125, NO),
        21.98,
        (600, 0, 31),
        nodes.EIGHT_100,
        _PRODUCT,
        "24gb pcie",
    ),
    # Made for AWS: its tensor cores run at about half the rate of the A10's.
    row("A10G", (35, 35, 70, 70, NO), 21.98, (600, 0, 31), nodes.AWS_G5, _A10G, "24gb pcie"),
    row("A2", (4.5, 9, 18, 18, NO), 14.5, (200, 0, 15.5), nodes.EIGHT_50, _PRODUCT, "16gb pcie"),
    row("H100-SXM", _GH100, 79.1, (3350, 450, 63), nodes.DGX_H100, _H100, "80gb hbm3"),
    row(
        "H100-PCIe",
        (51, 378, 756, 756, 1513),
        79.1,
        (2000, 0, 63),
        nodes.EIGHT_200,
        _H100,
        "80gb hbm2e",
    ),
    row("H100-NVL", _GH100_NVL, 93.0, (3900, 0, 63), nodes.EIGHT_200, _H100, "94gb pcie hbm3"),
    # The H100 with NVLink at 400 of 900 GB/s, both directions.
    row("H800", _GH100, 79.1, (3350, 200, 63), nodes.HGX_H800, _EXPORT, "80gb sxm hbm3"),
    row("H20", _GH20, 95.0, (4000, 450, 63), nodes.EIGHT_400, _EXPORT, "96gb sxm hbm3"),
    row("H20-3e", _GH20, 139.72, (4800, 450, 63), nodes.EIGHT_400, _EXPORT, "141gb sxm hbm3e"),
    row("H200", _GH100, 139.72, (4800, 450, 63), nodes.DGX_H200, _H200, "141gb sxm"),
    row("H200-NVL", _GH100_NVL, 139.72, (4800, 0, 63), nodes.EIGHT_200, _H200, "141gb pcie"),
    # Drivers name the first by the memory of its host, which both reach over NVLink-C2C.
    row("GH200-96GB", _GH100, 94.5, (4000, 450, 450), nodes.QUAD_GH200, _GH200, "480gb 120gb hbm3"),
    row("GH200-144GB", _GH100, 142.0, (4900, 450, 450), nodes.QUAD_GH200, _GH200, "hbm3e"),
    row(
        "B200",
        (80, 1125, 2250, 2250, 4500),
        178.35,
        (8000, 900, 63),
        nodes.DGX_B200,
        _HGX,
        "180gb sxm",
    ),
    row(
        "B300",
        (75, 1125, 2250, 2250, 4500),
        267.7,
        (8000, 900, 63),
        nodes.DGX_B300,
        _HGX,
        "288gb sxm ac",
    ),
    # A Grace CPU serves two of them over 450 GB/s of NVLink-C2C in each direction.
    row(
        "GB200",
        (80, 1250, 2500, 2500, 5000),
        184.3,
        (8000, 900, 225),
        nodes.GB200_NVL72,
        sheet("gb200-nvl72"),
        "186gb",
    ),
    row(
        "GB300",
        (80, 1250, 2500, 2500, 5000),
        276.0,
        (8000, 900, 225),
        nodes.GB300_NVL72,
        sheet("gb300-nvl72"),
        "288gb",
    ),
    row(
        "L4", (30.3, 60, 121, 121, 242), 21.95, (300, 0, 31), nodes.AWS_G6, sheet("l4"), "24gb pcie"
    ),
    row(
        "L20",
        (59.8, 59.8, 119.5, 119.5, 239),
        44.3,
        (864, 0, 31),
        nodes.EIGHT_100,
        _EXPORT,
        "48gb pcie",
    ),
    row(
        "L40",
        (90.5, 90.5, 181, 181, 362),
        44.3,
        (864, 0, 31),
        nodes.FOUR_100,
        sheet("l40"),
        "48gb pcie",
    ),
    row(
        "L40S",
        (91.6, 183, 362, 362, 733),
        44.32,
        (864, 0, 31),
        nodes.FOUR_100,
        sheet("l40s"),
        "48gb pcie",
    ),
)
