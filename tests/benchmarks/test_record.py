"""Records: one CSV a run, and a table whose headings name the unit."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import record


@dataclass(frozen=True)
class Row:
    model: str
    peak_bytes: int
    gap_fraction: float
    fits: bool


ROWS = [Row("a", 1_500_000, 0.0123, True), Row("b", 2_000_000, 0.5, False)]


def test_a_record_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    path = record.record("zoo", ROWS)
    assert path.name.endswith("-zoo.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "model": "a",
        "peak_bytes": "1500000",
        "gap_fraction": "0.0123",
        "fits": "True",
    }


def test_a_table_shows_units(capsys: pytest.CaptureFixture[str]) -> None:
    record.show("zoo", ROWS)
    shown = capsys.readouterr().out
    assert "peak, MB" in shown
    assert "gap, %" in shown
    assert "1.5" in shown
    assert "1.23" in shown
    assert "NO" in shown
