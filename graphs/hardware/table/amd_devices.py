"""Rows of AMD's accelerators and cards.

torch sees one half of an MI250 or MI250X (a GCD) as a device of its own, so that is a row here.
Float32 is the matrix units' rate.
"""

from __future__ import annotations

from planner.graphs.hardware.columns import GIB, Node
from planner.graphs.hardware.table.row import ASSUMED, MACHINE, NO, DeviceRow, row

_AZURE = "Azure ND MI300X v5 documentation: 400 Gb/s InfiniBand a GPU"
_OLCF = "OLCF Frontier user guide: 4 cards (8 GCDs) and 4 x 200 Gb/s a node"
_LLNL = "LLNL El Capitan documentation: 4 MI300A and 4 x 200 Gb/s a node"
_ND_MI300X = Node(8, 50e9, _AZURE, 1850 * GIB)
_FRONTIER = Node(8, 12.5e9, _OLCF, 512 * GIB)
_EL_CAPITAN = Node(4, 25e9, _LLNL)
_EIGHT_400, _EIGHT_100 = Node(8, 50e9, ASSUMED), Node(8, 12.5e9, ASSUMED)
_INSTINCT = "https://www.amd.com/en/products/accelerators/instinct"
_MI300, _MI350, _MI200 = (
    f"AMD {{}} data sheet, {_INSTINCT}/{series}.html" for series in ("mi300", "mi350", "mi200")
)
_MI300X = f"AMD MI300X data sheet, {_INSTINCT}/mi300/mi300x.html"
_GCD = f"half of the card in the AMD {{}} data sheet, {_INSTINCT}/mi200.html"
_RADEON = "AMD Radeon {} specifications"
_CDNA_3 = (163.4, 653.7, 1307.4, 1307.4, 2614.9)
_OAM = "oam vf"

AMD: tuple[DeviceRow, ...] = (
    row("MI300X", _CDNA_3, 191.69, (5300, 448, 63), _ND_MI300X, _MI300X, f"192gb {_OAM}"),
    row("MI325X", _CDNA_3, 255.7, (6000, 448, 63), _EIGHT_400, _MI300, f"256gb {_OAM}"),
    row(
        "MI350X",
        (144.2, NO, 2306.9, 2306.9, 4613.7),
        287.7,
        (8000, 537.6, 63),
        _EIGHT_400,
        _MI350,
        f"288gb {_OAM}",
    ),
    row(
        "MI355X",
        (157.3, NO, 2516.6, 2516.6, 5033.2),
        287.7,
        (8000, 537.6, 63),
        _EIGHT_400,
        _MI350,
        f"288gb {_OAM}",
    ),
    # Host and device share its memory.
    row(
        "MI300A",
        (122.6, 490.3, 980.6, 980.6, 1961.2),
        125.0,
        (5300, 384, 63),
        _EL_CAPITAN,
        _MI300,
        "128gb",
    ),
    # A ring through a node passes hops of one link of 50 GB/s; the host's has 36 (OLCF user guide).
    row(
        "MI250X",
        (47.9, NO, 191.5, 191.5, NO),
        63.9,
        (1638.4, 50, 36),
        _FRONTIER,
        _GCD,
        "64gb oam gcd",
    ),
    # Drivers call it "MI250X / MI250".
    row(
        "MI250",
        (45.3, NO, 181, 181, NO),
        63.9,
        (1638.4, 50, 36),
        _EIGHT_100,
        _GCD,
        "64gb oam gcd mi250x",
    ),
    row("MI210", (45.3, NO, 181, 181, NO), 63.9, (1638.4, 0, 31), _EIGHT_100, _MI200, "64gb pcie"),
    row("RX-7900-XTX", (61.4, NO, 122.8, 122.8, NO), 23.9, (960, 0, 31), MACHINE, _RADEON, "24gb"),
    row("PRO-W7900", (61.3, NO, 122.6, 122.6, NO), 44.9, (864, 0, 31), MACHINE, _RADEON, "48gb"),
)
