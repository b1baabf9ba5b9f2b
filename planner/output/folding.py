"""Fold repeated layers: rows of ``h.0.attn`` to ``h.11.attn`` read as one ``h.0-11.attn``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from planner.graphs import Graph
from planner.graphs.binding import short_target
from planner.plan.step_plan import Recomputed


@dataclass(frozen=True, slots=True)
class Fold:
    """The same operator in the same place of every layer.

    ``count`` adds up the extra runs; ``modules`` is a path in which each number is a range.
    """

    modules: str
    target: str
    count: int
    saved_bytes: int
    extra_seconds: float


def fold(graph: Graph, recomputed: Iterable[Recomputed]) -> tuple[Fold, ...]:
    """Group recomputed ops by operator and by module path up to numbers, most bytes first."""
    groups: defaultdict[tuple[str, str], list[Recomputed]] = defaultdict(list)
    for item in recomputed:
        op = graph.ops[item.index]
        groups[_pattern(op.module), short_target(op.target)].append(item)
    folds = (
        Fold(
            modules=fold_paths([graph.ops[r.index].module for r in members]),
            target=target,
            count=sum(r.extra_runs for r in members),
            saved_bytes=sum(r.saved_bytes for r in members),
            extra_seconds=sum(r.extra_seconds for r in members),
        )
        for (_, target), members in groups.items()
    )
    return tuple(sorted(folds, key=lambda f: (-f.saved_bytes, -f.extra_seconds, f.modules)))


def fold_paths(paths: list[str]) -> str:
    """Join paths that differ only in their numbers.

    >>> fold_paths(["h.0.attn", "h.1.attn", "h.2.attn", "h.5.attn"])
    'h.0-2,5.attn'
    """
    columns = zip(*(path.split(".") for path in paths), strict=True)
    return ".".join(
        _ranges({int(p) for p in parts}) if parts[0].isdigit() else parts[0] for parts in columns
    )


def _pattern(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _ranges(numbers: set[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
