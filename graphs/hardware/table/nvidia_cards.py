"""Rows of NVIDIA's cards for desks: GeForce, then workstation, by generation.

A 16-bit product is priced with float32 accumulation, which is what torch runs: on GeForce that is
half of the rate with float16 accumulation, on workstation cards the same.
"""

from __future__ import annotations

from planner.graphs.hardware.table.nvidia_nodes import AWS_G7E
from planner.graphs.hardware.table.row import MACHINE, NO, DeviceRow, row

_TURING = "NVIDIA Turing GPU architecture white paper, WP-09183-001, appendix A"
_AMPERE = "NVIDIA Ampere GA102 GPU architecture white paper, appendix A"
_ADA = "NVIDIA Ada GPU architecture white paper, appendix A"
_RTX_50 = "NVIDIA RTX Blackwell GPU architecture white paper, appendix A"
# The white papers print the largest cards; the others have the same rates a multiprocessor.
_LIKE_3090 = "NVIDIA GeForce {} specifications, tensor rates as the RTX 3090's for its float32"
_LIKE_4090 = "NVIDIA GeForce {} specifications, tensor rates as the RTX 4090's for its float32"
_LIKE_5090 = "NVIDIA GeForce {} specifications, tensor rates as the RTX 5090's for its float32"
_PRO = "NVIDIA {} data sheet, tensor rates without sparsity"
_SERVER = "NVIDIA {} Edition data sheet, tensor rates as the RTX PRO 6000's for its float32"
_TU102 = (16.3, NO, 130.5, NO, NO)
_4060_TI = (22.1, 22.1, 44.1, 44.1, 88.3)
_BLACKWELL = "96gb blackwell edition"

CARDS: tuple[DeviceRow, ...] = (
    row("RTX-2080-Ti", (13.4, NO, 53.8, NO, NO), 10.75, (616, 0, 16), MACHINE, _TURING, "11gb"),
    row("TITAN-RTX", _TU102, 23.6, (672, 0, 16), MACHINE, _TURING, "24gb"),
    row("RTX-3060", (12.7, 12.7, 25.5, 25.5, NO), 11.75, (360, 0, 31), MACHINE, _LIKE_3090, "12gb"),
    row(
        "RTX-3060-Ti", (16.2, 16.2, 32.4, 32.4, NO), 7.78, (448, 0, 31), MACHINE, _LIKE_3090, "8gb"
    ),
    row("RTX-3070", (20.3, 20.3, 40.6, 40.6, NO), 7.78, (448, 0, 31), MACHINE, _AMPERE, "8gb"),
    row(
        "RTX-3070-Ti", (21.7, 21.7, 43.5, 43.5, NO), 7.78, (608, 0, 31), MACHINE, _LIKE_3090, "8gb"
    ),
    row("RTX-3080-10GB", (29.8, 29.8, 59.5, 59.5, NO), 9.75, (760, 0, 31), MACHINE, _AMPERE),
    row("RTX-3080-12GB", (30.6, 30.6, 61.3, 61.3, NO), 11.75, (912, 0, 31), MACHINE, _LIKE_3090),
    row(
        "RTX-3080-Ti",
        (34.1, 34.1, 68.2, 68.2, NO),
        11.75,
        (912, 0, 31),
        MACHINE,
        _LIKE_3090,
        "12gb",
    ),
    row("RTX-3090", (35.6, 35.6, 71, 71, NO), 23.57, (936, 0, 31), MACHINE, _AMPERE, "24gb"),
    row("RTX-3090-Ti", (40, 40, 80, 80, NO), 23.57, (1008, 0, 31), MACHINE, _ADA, "24gb"),
    row(
        "RTX-4060", (15.1, 15.1, 30.2, 30.2, 60.5), 7.6, (272, 0, 15.5), MACHINE, _LIKE_4090, "8gb"
    ),
    row("RTX-4060-Ti-8GB", _4060_TI, 7.6, (288, 0, 15.5), MACHINE, _LIKE_4090),
    row("RTX-4060-Ti-16GB", _4060_TI, 15.6, (288, 0, 15.5), MACHINE, _LIKE_4090),
    row(
        "RTX-4070", (29.1, 29.1, 58.3, 58.3, 116.6), 11.6, (504, 0, 31), MACHINE, _LIKE_4090, "12gb"
    ),
    row(
        "RTX-4070-SUPER", (35.5, 35.5, 71, 71, 142), 11.6, (504, 0, 31), MACHINE, _LIKE_4090, "12gb"
    ),
    row("RTX-4070-Ti", (40.1, 40.1, 80.2, 80.2, 160.4), 11.6, (504, 0, 31), MACHINE, _ADA, "12gb"),
    row(
        "RTX-4070-Ti-SUPER",
        (44.1, 44.1, 88.2, 88.2, 176.4),
        15.6,
        (672, 0, 31),
        MACHINE,
        _LIKE_4090,
        "16gb",
    ),
    row("RTX-4080", (48.7, 48.7, 97.5, 97.5, 194.9), 15.6, (716.8, 0, 31), MACHINE, _ADA, "16gb"),
    row(
        "RTX-4080-SUPER",
        (52.2, 52.2, 104.4, 104.4, 208.9),
        15.6,
        (736.3, 0, 31),
        MACHINE,
        _LIKE_4090,
        "16gb",
    ),
    row(
        "RTX-4090",
        (82.6, 82.6, 165.2, 165.2, 330.3),
        23.53,
        (1008, 0, 31),
        MACHINE,
        _ADA,
        "24gb pcie",
    ),
    row(
        "RTX-5060-Ti-16GB",
        (23.7, 23.7, 47.4, 47.4, 94.9),
        15.4,
        (448, 0, 31.5),
        MACHINE,
        _LIKE_5090,
    ),
    row("RTX-5070", (30.9, 30.9, 61.7, 61.7, 123.5), 11.5, (672, 0, 63), MACHINE, _RTX_50, "12gb"),
    row(
        "RTX-5070-Ti", (43.9, 43.9, 87.9, 87.9, 175.8), 15.4, (896, 0, 63), MACHINE, _RTX_50, "16gb"
    ),
    row(
        "RTX-5080", (56.3, 56.3, 112.6, 112.6, 225.1), 15.4, (960, 0, 63), MACHINE, _RTX_50, "16gb"
    ),
    row(
        "RTX-5090",
        (104.8, 104.8, 209.5, 209.5, 419),
        31.35,
        (1792, 0, 63),
        MACHINE,
        _RTX_50,
        "32gb",
    ),
    row("Quadro-RTX-6000", _TU102, 22.1, (672, 0, 16), MACHINE, _TURING, "24gb"),
    row("Quadro-RTX-8000", _TU102, 44.4, (672, 0, 16), MACHINE, _TURING, "48gb"),
    row("RTX-A4000", (19.2, 38.3, 76.7, 76.7, NO), 15.6, (448, 0, 31), MACHINE, _PRO, "16gb"),
    row("RTX-A5000", (27.8, 55.6, 111.1, 111.1, NO), 23.5, (768, 0, 31), MACHINE, _PRO, "24gb"),
    row("RTX-A6000", (38.7, 77.4, 154.8, 154.8, NO), 47.4, (768, 0, 31), MACHINE, _PRO, "48gb"),
    row(
        "RTX-4000-Ada",
        (26.7, 53.4, 106.8, 106.8, 213.6),
        19.5,
        (360, 0, 31),
        MACHINE,
        _PRO,
        "20gb generation",
    ),
    row(
        "RTX-5000-Ada",
        (65.3, 130.6, 261.1, 261.1, 522.1),
        31.4,
        (576, 0, 31),
        MACHINE,
        _PRO,
        "32gb generation",
    ),
    row(
        "RTX-6000-Ada",
        (91.1, 182.1, 364.2, 364.2, 728.5),
        47.3,
        (960, 0, 31),
        MACHINE,
        _PRO,
        "48gb generation",
    ),
    row(
        "RTX-PRO-6000",
        (126, 251.9, 503.8, 503.8, 1007.6),
        94.9,
        (1792, 0, 63),
        MACHINE,
        _PRO,
        f"{_BLACKWELL} workstation",
    ),
    row(
        "RTX-PRO-6000-Max-Q",
        (110, 219.4, 438.9, 438.9, 877.8),
        94.9,
        (1792, 0, 63),
        MACHINE,
        _PRO,
        f"{_BLACKWELL} workstation",
    ),
    row(
        "RTX-PRO-6000-Server",
        (120, 240, 480, 480, 960),
        94.9,
        (1597, 0, 63),
        AWS_G7E,
        _SERVER,
        _BLACKWELL,
    ),
)
