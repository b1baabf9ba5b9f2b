"""What differs between the versions of torch that we admit, and what stands in for it.

The tests were run on 2.13 and 2.14; 2.10, 2.11 and 2.12 have every name used here, but were only
read. Nothing fails at import: a version that cannot do is refused when a step is captured.
"""

from __future__ import annotations

import functools
import pkgutil
from dataclasses import dataclass
from typing import Any

import torch

from planner.graphs.capture_error import CaptureError

OLDEST = (2, 10)


@dataclass(frozen=True)
class VersionDifference:
    """A name that older versions lack: since when it is there, what for, what stands in for it."""

    name: str
    since: tuple[int, int]
    used_for: str
    stand_in: str = ""


DIFFERENCES = {
    row.name: row
    for row in (
        VersionDifference(
            "torch._functorch.aot_autograd:aot_export_joint_with_descriptors",
            (2, 9),
            "tracing forward and backward as one graph",
        ),
        VersionDifference(
            "torch._functorch._aot_autograd.descriptors",
            (2, 9),
            "telling parameters from inputs in that graph",
        ),
        VersionDifference(
            "torch.fx.traceback:annotate",
            (2, 10),
            "the module and the line that an op comes from",
        ),
        VersionDifference(
            "torch.fx.graph:_BoxedCodeGen",
            (2, 10),
            "programs whose arguments die early",
        ),
        VersionDifference(
            "torch._higher_order_ops.effects:_get_effect",
            (2, 10),
            "checks of a factorization that are not put in an order",
        ),
        VersionDifference(
            "torch.distributed:all_gather_single",
            (2, 13),
            "watching sharded training",
            stand_in="torch.distributed:all_gather_into_tensor",
        ),
        VersionDifference(
            "torch.distributed:reduce_scatter_single",
            (2, 13),
            "watching sharded training",
            stand_in="torch.distributed:reduce_scatter_tensor",
        ),
    )
}
"""By name, as ``module:member`` or ``module``.

Not here, because one way suits all versions: ``custom_op(tags=)`` takes a single tag only since
2.13, so it is given a list; and ``_linalg_check_errors`` is an effect only since 2.13, so what it
was before a capture is put back, whatever that is.
"""


@functools.cache
def present(name: str) -> str | None:
    """Return a name of the table as this torch has it, or ``None`` if it has none for it.

    >>> present("torch.fx.traceback:annotate")
    'torch.fx.traceback:annotate'
    """
    row = DIFFERENCES[name]
    return next((n for n in (row.name, row.stand_in) if n and _found(n) is not None), None)


def newer(name: str) -> Any:
    """Return what a name of the table stands for, or ``None`` in a version that is refused."""
    found = present(name)
    return None if found is None else _found(found)


def require_supported() -> None:
    """Refuse a version of torch that is too old, or lacks what nothing stands in for.

    Raises:
        CaptureError: the message names the version and what is missing.
    """
    missing = [row.used_for for row in DIFFERENCES.values() if present(row.name) is None]
    if missing or _version() < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        lacks = f", and this one lacks what is needed for {'; '.join(missing)}" if missing else ""
        raise CaptureError(
            f"torch {torch.__version__} is installed, and capturing needs {oldest} or newer"
            f"{lacks}; install another version"
        )


def _version() -> tuple[int, int]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


def _found(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None
