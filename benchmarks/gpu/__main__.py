"""The command line of the checks."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import torch

import benchmarks.gpu
from benchmarks.gpu.kernels import cases, kernels, overwritten
from benchmarks.gpu.models import LARGE
from benchmarks.gpu.options import chunks, compiled, measured, moved
from benchmarks.gpu.rows import SKIPPED, Row
from benchmarks.gpu.steps import bits, guards, held_budget, memory, ten_steps, workspaces
from benchmarks.gpu.timing import large, rivals, speed
from benchmarks.record import record, show
from planner.graphs.hardware.detect import device_at

CHECKS: Mapping[str, tuple[Callable[[str], Iterator[Row]], bool]] = {
    "workspaces": (workspaces, True),
    "kernels": (kernels, False),
    "guards": (guards, False),
    "bits": (bits, False),
    "memory": (memory, False),
    "held_budget": (held_budget, True),
    "speed": (speed, False),
    "rivals": (rivals, False),
    "overwritten": (overwritten, False),
    "cases": (cases, False),
    "compiled": (compiled, False),
    "moved": (moved, False),
    "chunks": (chunks, False),
    "measured": (measured, False),
    **{name: (partial(large, name=name), True) for name in LARGE},
}
"""Each check, and whether it has a meaning on a card alone."""


def rows(kind: str, names: Collection[str] = ()) -> Iterator[Row]:
    """Run every check, or those named; one that fails is a row of its own."""
    for name, (check, needs_card) in CHECKS.items():
        if names and name not in names:
            continue
        if needs_card and kind != "cuda":
            yield Row(name, "", "", "", "", "", SKIPPED)
            continue
        try:
            yield from check(kind)
        except Exception as error:  # noqa: BLE001 - the others are still to be run
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            yield Row(name, "", "outcome", told[:300], "an end", "", "WRONG")


def main() -> None:
    """Print and record the rows; end with 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=benchmarks.gpu.__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--ten-steps", metavar="MODEL", help="train it within its budget, alone")
    said = parser.parse_args()
    if unknown := set(said.checks).difference(CHECKS):
        known = ", ".join(CHECKS)
        parser.error(f"no check is named {', '.join(sorted(unknown))}; there are {known}")
    if said.ten_steps:
        return ten_steps(said.ten_steps)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for row in rows(kind, said.checks):
        found.append(row)
        print(*vars(row).values(), sep=" | ", file=sys.stderr, flush=True)
    show(f"Checks on {device_at(kind).name}", found)
    named = "_".join(re.sub(r"\W+", "_", name) for name in said.checks)
    print(record(f"gpu_{named}" if named else "gpu", found))
    raise SystemExit(any(row.verdict == "WRONG" for row in found))


if __name__ == "__main__":
    main()
