"""Measurements remembered from one process to the next, for this very machine and torch.

Knows a folder of JSON files, one for each environment. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from planner.graphs.costs.tensor_float import tf32_kernels
from planner.graphs.files import write_atomically

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_VERSION = 3
_ONE_WRITER = threading.Lock()


def default_cache() -> Path:
    """Return the user's cache folder, made if need be: ``$XDG_CACHE_HOME/remat-planner``."""
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "remat-planner"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(device: torch.device) -> str:
    """Name what a measurement depends on besides the operator: torch, the chip, the threads."""
    if device.type == "cuda":
        name, flags = torch.cuda.get_device_name(device), ", ".join(_flags())
        return f"torch {torch.__version__}, {name}" + (f", {flags}" if flags else "")
    return f"torch {torch.__version__}, {_cpu_model()}, {torch.get_num_threads()} threads"


def _flags() -> Iterator[str]:
    """Yield what the user has set that other kernels are chosen by."""
    yield from sorted(f"tf32 {kernel.value}" for kernel in tf32_kernels())
    if torch.backends.cudnn.benchmark:
        yield "benchmark"
    if torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
        yield "deterministic"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        if models := [text.strip() for key, _, text in lines if key.strip() == "model name"]:
            return models[0]
    return platform.processor() or platform.machine()


def recall(folder: Path, kind: str, where: str) -> dict[str, Any]:
    """Read what was remembered of a kind ("seconds", ...).

    A damaged file warns and counts as empty: it is only a cache.

    Args:
        folder: there or not.
        kind: what was measured.
        where: the environment it was measured in.
    """
    path = _path(folder, kind, where)
    if not path.exists():
        return {}
    found = path.stat()
    try:
        return dict(_entries(path, where, (found.st_ino, found.st_mtime_ns, found.st_size)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({error!r}): measuring again", stacklevel=2)
        return {}


@lru_cache(maxsize=8)
def _entries(path: Path, where: str, version: tuple[int, ...]) -> Mapping[str, Any]:
    """Read a file once, until another takes its place: a large one takes longer than a question.

    Args:
        path: of the file.
        where: the environment that it has to be for.
        version: what tells the file from those before and after it.
    """
    del version
    data = json.loads(path.read_text())
    if data["version"] != _VERSION or data["environment"] != where:
        return {}
    return {str(key): value for key, value in data["entries"].items()}


def remember(folder: Path, kind: str, where: str, entries: Mapping[str, Any]) -> None:
    """Add entries to those of other threads and processes; the file appears whole or not at all.

    Args:
        folder: made if need be.
        kind: what was measured ("seconds", ...).
        where: the environment it was measured in.
        entries: what is to be known from now on, by signature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        known = recall(folder, kind, where) | dict(entries)
        data = {"version": _VERSION, "environment": where, "entries": known}
        write_atomically(_path(folder, kind, where), json.dumps(data))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one writer at a time add to what is known, so that none writes over another's entries.

    Where files cannot be locked, that holds for the threads of one process only.
    """
    with _ONE_WRITER:
        if fcntl is None:
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _path(folder: Path, kind: str, where: str) -> Path:
    return folder / f"{kind}-{hashlib.sha256(where.encode()).hexdigest()[:12]}.json"
