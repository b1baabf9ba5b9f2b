"""The usual servers of NVIDIA's cards, each as its documentation describes it."""

from __future__ import annotations

from dataclasses import replace

from planner.graphs.hardware.columns import GIB, Node
from planner.graphs.hardware.table.row import ASSUMED

_TB = 10**12
_DGX = "NVIDIA {} data sheet: {}"
_AWS = "AWS {} documentation: {} Gb/s for 8 GPUs"


def _dgx(system: str, network: float, ports: str, host_memory_bytes: int) -> Node:
    return Node(8, network, _DGX.format(system, ports), host_memory_bytes)


DGX_1 = _dgx("DGX-1", 6.25e9, "4 x EDR InfiniBand of 100 Gb/s for 8 GPUs", 512 * GIB)
DGX_A100 = _dgx("DGX A100", 25e9, "8 x HDR InfiniBand of 200 Gb/s for 8 GPUs", 2 * _TB)
DGX_A100_40 = replace(DGX_A100, host_memory_bytes=_TB)
DGX_H100 = _dgx("DGX H100", 50e9, "8 x NDR InfiniBand of 400 Gb/s for 8 GPUs", 2 * _TB)
DGX_H200 = _dgx("DGX H200", 50e9, "8 x NDR of 400 Gb/s for 8 GPUs", 2 * _TB)
DGX_B200 = _dgx("DGX B200", 50e9, "8 x NDR of 400 Gb/s for 8 GPUs", 2 * _TB)
DGX_B300 = _dgx("DGX B300", 100e9, "8 x ConnectX-8 of 800 Gb/s for 8 GPUs", 2 * _TB)
GB200_NVL72 = Node(
    72,
    50e9,
    _DGX.format("GB200 NVL72", "72 GPUs in one NVLink domain, a ConnectX-7 of 400 Gb/s each"),
    17 * _TB,
)
GB300_NVL72 = Node(
    72,
    100e9,
    _DGX.format("GB300 NVL72", "72 GPUs in one NVLink domain, a ConnectX-8 of 800 Gb/s each"),
    17 * _TB,
)
QUAD_GH200 = Node(4, 25e9, "Alps (CSCS) documentation: 4 GH200 and 4 x 200 Gb/s a node")
HGX_H800 = Node(8, 50e9, "DeepSeek-V3 report, arXiv 2412.19437: 8 H800 and 8 x 400 Gb/s a node")
AWS_G4DN = Node(8, 1.5625e9, _AWS.format("g4dn.metal", 100), 384 * GIB)
AWS_G5 = Node(8, 1.5625e9, _AWS.format("g5.48xlarge", 100), 768 * GIB)
AWS_G6 = Node(8, 1.5625e9, _AWS.format("g6.48xlarge", 100), 768 * GIB)
AWS_G7E = Node(8, 25e9, _AWS.format("g7e.48xlarge", "1,600"), 2048 * GIB)
# Servers that nobody's documentation stands for, by the generation of network cards they come with.
EIGHT_50 = Node(8, 6.25e9, ASSUMED)
EIGHT_100 = Node(8, 12.5e9, ASSUMED)
EIGHT_200 = Node(8, 25e9, ASSUMED)
EIGHT_400 = Node(8, 50e9, ASSUMED)
FOUR_100 = Node(4, 12.5e9, ASSUMED)
