"""The pages say what the code does: the table of devices, the rooms, and which files there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from planner.graphs.hardware.cluster import cluster
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.device_files import load_device
from planner.graphs.hardware.devices import DEVICES
from tests import house

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
TOLD = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FOLDERS = "graphs|solvers|planner|examples|benchmarks|docs|tests"
ABOVE = "|---|---|---|---|---|---|---|---|---|---|---|\n"


def row(card: Device) -> str:
    assert card.node is not None
    made = cluster(card, 2 * card.node.devices)
    peak = card.peak_flops
    rates = (
        peak["float32"],
        peak.get("tf32"),
        peak.get("bfloat16", peak["float16"]),
        peak.get("float8_e4m3fn"),
    )
    cells = [
        card.name,
        *("-" if rate is None else f"{rate / 1e12:.5g}" for rate in rates),
        f"{card.memory_bytes / 2**30:.5g}",
        f"{card.bandwidth / 1e9:.5g}",
        made.devices_per_node,
        *(
            f"{link.bytes_per_second / 1e9:.5g}" + " (assumed)" * link.assumed
            for link in (made.scale_up, made.scale_out, made.host)
        ),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def test_the_table_is_the_table(request: pytest.FixtureRequest) -> None:
    page = DOCS / "devices.md"
    above, _, found = page.read_text(encoding="utf-8").partition(ABOVE)
    expected = "".join(f"{row(card)}\n" for card in DEVICES.values())
    if request.config.getoption("--overwrite"):
        page.write_text(above + ABOVE + expected, encoding="utf-8")
        found = expected
    assert found == expected, "run pytest tests/test_docs.py --overwrite and look at the page"


def test_the_page_describes_one_device_twice(tmp_path: Path) -> None:
    page = (DOCS / "devices.md").read_text(encoding="utf-8")
    code, text = (re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "json"))
    said: dict[str, Any] = {}
    exec(code[0], said)
    (tmp_path / "card.json").write_text(text[0])
    assert load_device(tmp_path / "card.json") == said["card"]


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.stem)
def test_named_files_exist(page: Path) -> None:
    """Every path in the text, of the checkout or as a link, leads somewhere."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w/?)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path


def test_recorded_results_exist() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    names = re.findall(r"[\w-]+\.csv", text)
    assert names
    for name in names:
        assert (ROOT / "benchmarks" / "results" / name).exists(), name


def test_every_room_is_told_in_its_order() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = [
        room.removesuffix("/")
        for line in text.partition("## The rooms")[2].partition("## The seams")[0].splitlines()
        for room in re.findall(r"`([\w/.]+)`", line.partition(" | ")[0])
    ]
    told = [room for room in rooms if room.partition("/")[0] in house.FLOORS]
    unsaid = {"__init__.py", "checkout.py", "capture_error.py", "expert_capacity.py"}
    assert told == [room for room in house.ORDER if room.partition("/")[2] not in unsaid]
