"""Write a sharded plan for another launcher, and say what that one cannot do.

Knows which formats there are and how their files find each other. Knows nothing of their contents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from planner.errors import BadSpec
from planner.graphs.files import write_atomically
from planner.output.exporters.elsewhere import (
    accelerate,
    accelerate_notes,
    deepspeed,
    deepspeed_notes,
)
from planner.output.exporters.fsdp2 import fsdp2, script_notes
from planner.plan.sharded import ShardedPlan

LAUNCHERS = {
    "accelerate": "accelerate.yaml",
    "deepspeed": "deepspeed.json",
    "fsdp2": "train_fsdp2.py",
}
"""The formats that start a training, and the names their files usually have."""


def _write_html(plan: ShardedPlan, path: Path) -> None:
    plan.report(path)


def _write_json(plan: ShardedPlan, path: Path) -> None:
    plan.save(path)


def _write_txt(plan: ShardedPlan, path: Path) -> None:
    write_atomically(path, str(plan))


def _write_deepspeed(plan: ShardedPlan, path: Path) -> None:
    write_atomically(path, deepspeed(plan))


def _write_accelerate(plan: ShardedPlan, path: Path) -> None:
    write_atomically(path, accelerate(plan))


_WRITERS: dict[str, Callable[[ShardedPlan, Path], None]] = {
    "accelerate": _write_accelerate,
    "deepspeed": _write_deepspeed,
    "html": _write_html,
    "json": _write_json,
    "txt": _write_txt,
}
FORMATS = tuple(sorted((*_WRITERS, "fsdp2")))


def export(
    plan: ShardedPlan,
    path: str | Path,
    format: str | None = None,
    *,
    plan_path: str | Path | None = None,
) -> tuple[str, ...]:
    """Write a plan in a named format, by default the one of the path's suffix.

    Args:
        plan: what to write.
        path: where to.
        format: one of ``FORMATS``.
        plan_path: where the plan is kept, for the script that loads it; if it is nowhere yet, it is
            saved beside the script.

    Returns:
        What the format cannot express or does otherwise, one sentence each.

    Raises:
        BadSpec: an unknown format; the message lists the valid ones.
    """
    target = Path(path)
    chosen = target.suffix.removeprefix(".") if format is None else format
    if chosen == "fsdp2":
        if plan_path is None:
            plan_path = target.with_suffix(".plan.json")
            plan.save(plan_path)
        there = os.path.relpath(plan_path, target.resolve().parent)
        write_atomically(target, fsdp2(plan, there))
    elif chosen in _WRITERS:
        _WRITERS[chosen](plan, target)
    else:
        raise BadSpec(f"unknown format {chosen!r}; valid formats: {', '.join(FORMATS)}")
    return tuple(_NOTES[chosen](plan)) if chosen in _NOTES else ()


_NOTES: dict[str, Callable[[ShardedPlan], Iterator[str]]] = {
    "accelerate": accelerate_notes,
    "deepspeed": deepspeed_notes,
    "fsdp2": script_notes,
}
