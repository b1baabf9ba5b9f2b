"""Memories behind a host's link that values may move to: disks, and memory on CXL, one row each.

Rates are what makers state for large sequential transfers, both directions told apart: a disk is
written more slowly than it is read. What a plan assumes of them is ``graphs.hardware.host_tier``'s.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class TierKind(enum.Enum):
    """How a tier is reached: through files, or as memory of the host."""

    DISK = "disk"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Tier:
    """A disk or a memory module: bytes/s in which it is written and read, and how much it has.

    Raises:
        ValueError: a rate or a size that is not positive.

    >>> Tier("mine", TierKind.DISK, 2e9, 3e9, 10**12, "measured with fio").write_bytes_per_second
    2000000000.0
    """

    name: str
    kind: TierKind
    write_bytes_per_second: float
    read_bytes_per_second: float
    size_bytes: int
    source: str

    def __post_init__(self) -> None:
        for rate in (self.write_bytes_per_second, self.read_bytes_per_second, self.size_bytes):
            if isinstance(rate, bool) or not 0 < rate < math.inf:
                raise ValueError(f"the tier {self.name!r} has {rate!r}: expected more than 0")


_CXL = "of both directions together, two reads to one write: 2/3 and 1/3 of it are taken here"

_ROWS = (
    Tier(
        "Samsung 990 PRO 2TB", TierKind.DISK, 6.9e9, 7.45e9, 2 * 10**12,
        "digitec.ch, MZ-V9P2T0BW: up to 7,450 MB/s read, 6,900 written (into its cache), PCIe 4.0",
    ),
    Tier(
        "Samsung PM9A3 3.84TB", TierKind.DISK, 3.5e9, 6.5e9, 3_840 * 10**9,
        "Engadget, 2020, at its announcement, U.2: 6,500 MB/s read, 3,500 written, PCIe 4.0",
    ),
    Tier(
        "Micron 9550 MAX 6.4TB", TierKind.DISK, 10e9, 14e9, 6_400 * 10**9,
        "StorageReview, Micron's specifications: 14,000 MB/s read, 10,000 written, PCIe 5.0",
    ),
    Tier(
        "Micron CZ120 256GB", TierKind.MEMORY, 12e9, 24e9, 256 * 10**9,
        f"Tom's Hardware, 2023, CXL 2.0 on PCIe 5.0 x8: 36 GB/s {_CXL}",
    ),
    Tier(
        "Samsung CMM-D 2.0 256GB", TierKind.MEMORY, 12e9, 24e9, 256 * 10**9,
        f"memoryxref.com, MD220, CXL 2.0 on PCIe 5.0 x8: 36 GB/s, taken to be {_CXL}",
    ),
)  # fmt: skip

TIERS: dict[str, Tier] = {row.name: row for row in _ROWS}
"""By name. A user's own is one row more: ``TIERS["mine"] = Tier(...)``, or passed as it is."""


def tier_named(name: str) -> Tier:
    """Return a row by its name, in any case.

    Args:
        name: of a row.

    Raises:
        ValueError: no row has it; the message lists those there are.

    >>> tier_named("micron 9550 max 6.4tb").read_bytes_per_second
    14000000000.0
    """
    by_name = {known.lower(): tier for known, tier in TIERS.items()}
    if name.lower() not in by_name:
        raise ValueError(f"no tier {name!r}; known: {', '.join(TIERS)}, or pass a Tier of your own")
    return by_name[name.lower()]
