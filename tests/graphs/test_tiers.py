"""Tiers of the table and one's own: what a plan assumes of them, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from planner.graphs.hardware.devices import cpu, device
from planner.graphs.hardware.host_tier import tier_of
from planner.graphs.hardware.tiers import TIERS, Tier, TierKind, tier_named
from planner.host_option import host_tier

MINE = Tier("mine", TierKind.DISK, 1e9, 2e9, 5 * 10**9, "made up for a test")


def test_every_row_says_where_it_is_from() -> None:
    assert {row.kind for row in TIERS.values()} == set(TierKind)
    for name, row in TIERS.items():
        assert tier_named(name.upper()) is row
        assert "PCIe" in row.source
        assert row.write_bytes_per_second <= row.read_bytes_per_second


def test_a_disk_is_for_files_and_a_row_of_ones_own_will_do(tmp_path: Any) -> None:
    said = {"tier": MINE, "directory": str(tmp_path)}
    found = host_tier(said, cpu())
    assert found is not None
    assert (found.to_host, found.from_host) == (1e9, 2e9)
    assert found.limit_bytes is not None
    assert found.limit_bytes <= MINE.size_bytes
    assert found.directory == str(tmp_path)


def test_memory_on_cxl_is_no_quicker_than_the_link() -> None:
    row = TIERS["Micron CZ120 256GB"]
    for card in ("RTX 4090", "GH200-96GB"):
        link, found = tier_of(device(card)), tier_of(device(card), behind=row)
        assert found.to_host == min(link.to_host, row.write_bytes_per_second)
        assert found.from_host == min(link.from_host, row.read_bytes_per_second)
        assert found.limit_bytes == row.size_bytes


def test_rates_of_both_directions() -> None:
    found = host_tier({"bytes_per_second": (1e9, 3e9)}, cpu())
    assert found is not None
    assert (found.to_host, found.from_host) == (1e9, 3e9)


@pytest.mark.parametrize(
    ("said", "card", "match"),
    [
        ({"tier": "no such"}, "cpu", "known: Samsung 990 PRO"),
        ({"tier": "Micron CZ120 256GB"}, "cpu", "is none of that"),
        ({"tier": "Samsung 990 PRO 2TB"}, "RTX 4090", "is none of that"),
        ({"bytes_per_second": (1e9, 2e9, 3e9)}, "cpu", "there and back"),
        ({"bytes_per_second": (1e9, 0)}, "cpu", "a number of more than 0"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], card: str, match: str) -> None:
    with pytest.raises(planner.BadRequest, match=match):
        host_tier(said, cpu() if card == "cpu" else device(card))
    with pytest.raises(ValueError, match="expected more than 0"):
        Tier("mine", TierKind.DISK, 0.0, 1.0, 1, "")
