"""Print rows, groups and what is missing; record the rows."""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import benchmarks.published
from benchmarks.published.case import Case
from benchmarks.published.predicting import Predicted, predicted
from benchmarks.published.reading import NotExpressedError, Row, case_of
from benchmarks.record import record, show

LEAST_GROUP = 5


@dataclass(frozen=True)
class Compared:
    """A prediction beside a measurement; an error above 0 is a prediction that is too high.

    What the row was read as comes first. ``peak`` is the kind of peak and how it was reached, by
    which errors are grouped.
    """

    source: str
    configuration: str
    model: str
    device: str
    attention: str
    optimizer: str
    precision: str
    recipe: str
    peak: str
    published_gib: float
    predicted_gib: float
    memory_error_fraction: float
    published_speed: float
    predicted_speed: float
    speed_error_fraction: float


@dataclass(frozen=True)
class Short:
    """A comparison as a terminal has room for it."""

    row: str
    peak: str
    published_gib: float
    predicted_gib: float
    memory_error_fraction: float
    published_speed: float
    predicted_speed: float
    speed_error_fraction: float


def rows_of(path: Path) -> Iterator[Compared | str]:
    """Yield a comparison for every row of a file, or what is missing to make one."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            case = case_of(row, rows)
        except NotExpressedError as error:
            yield f"{row['source']}: {row['configuration']}: {error}"
            continue
        yield compared(row, case, predicted(case))


def compared(row: Row, case: Case, found: Predicted) -> Compared:
    """Put a prediction beside a row."""
    gib = float(row["gib_published"] or math.nan)
    pace = float(row["samples_or_tokens_per_second_per_gpu"] or math.nan)
    return Compared(
        row["source"], row["configuration"], case.model, case.device.name, case.attention,
        case.optimizer, case.precision.value, case.recipe, case.group, gib, found.peak_gib,
        found.peak_gib / gib - 1, pace, found.per_second, found.per_second / pace - 1,
    )  # fmt: skip


def medians(rows: Sequence[Compared]) -> Iterator[str]:
    """Say how far off each group of memory is, and of speed each kind of device.

    A group of fewer than five shows its rows; the speed of compiled code is not judged by eager.
    """
    groups: defaultdict[str, list[tuple[float, Compared]]] = defaultdict(list)
    for row in rows:
        if not math.isnan(row.memory_error_fraction):
            groups[f"memory, {row.peak}"].append((row.memory_error_fraction, row))
        if not math.isnan(row.speed_error_fraction):
            family = "source compiled" if "compiled" in row.peak else row.device.partition("-")[0]
            groups[f"speed, {family}"].append((row.speed_error_fraction, row))
    for group, found in groups.items():
        errors = [error for error, _ in found]
        if len(errors) < LEAST_GROUP:
            said = "; ".join(f"{row.model} {error:+.1%}" for error, row in found)
            yield f"{group}: {len(errors)} rows, too few for a median: {said}"
            continue
        yield (
            f"{group}: {len(errors)} rows, median {statistics.median(errors):+.1%}, of sizes "
            f"{statistics.median(map(abs, errors)):.1%}, from {min(errors):+.1%} "
            f"to {max(errors):+.1%}"
        )


def main() -> None:
    """Compare every row of a file."""
    parser = argparse.ArgumentParser(description=benchmarks.published.__doc__)
    parser.add_argument("csv", type=Path, help="the measurements")
    found = list(rows_of(parser.parse_args().csv))
    rows = [row for row in found if isinstance(row, Compared)]
    show("Predicted and published", [_short(row) for row in rows])
    print(*medians(rows), sep="\n")
    print("Not expressed:", *(row for row in found if isinstance(row, str)), sep="\n  ")
    print(record("published", rows))


def _short(row: Compared) -> Short:
    return Short(
        f"{row.source}: {row.configuration}", row.peak, row.published_gib, row.predicted_gib,
        row.memory_error_fraction, row.published_speed, row.predicted_speed,
        row.speed_error_fraction,
    )  # fmt: skip


if __name__ == "__main__":
    main()
