"""Keep what a benchmark found: one CSV a run, named by date and commit, and a table to read.

Knows rows (frozen dataclasses) and files. Knows nothing of what was measured.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS = Path(__file__).parent / "results"


def record(benchmark: str, rows: Sequence[DataclassInstance]) -> Path:
    """Write rows to ``results/DATE-COMMIT-BENCHMARK.csv``, one column a field."""
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = RESULTS / f"{day}-{_commit()}-{benchmark}.csv"
    RESULTS.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(rows[0])])
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    return path


def show(title: str, rows: Sequence[DataclassInstance]) -> None:
    """Print rows as a table; bytes as MB, fractions as percent."""
    table = Table(title=title, title_justify="left")
    for field in fields(rows[0]):
        table.add_column(_heading(field.name), justify="left" if field.type == "str" else "right")
    for row in rows:
        table.add_row(*(_text(name, value) for name, value in asdict(row).items()))
    Console(width=200).print(table)


def _heading(name: str) -> str:
    for ending, unit in (("_bytes", "MB"), ("_seconds", "s"), ("_fraction", "%")):
        if name.endswith(ending):
            return f"{name.removesuffix(ending).replace('_', ' ')}, {unit}"
    return name.replace("_", " ")


def _text(name: str, value: Any) -> str:
    """Write a value in the unit its name says.

    >>> _text("peak_bytes", 1_500_000), _text("gap_fraction", 0.0123), _text("fits", True)
    ('1.5', '1.23', 'yes')
    >>> _text("gap_fraction", None)
    ''
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f}"
    if name.endswith("_fraction"):
        return f"{100 * value:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """Name the commit that is checked out, and say whether the sources differ from it."""
    command = ("git", "describe", "--always", "--dirty", "--exclude=*")
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
