"""Measurements remembered from one process to the next, for this very machine and torch.

Knows a folder of JSON files, one for each environment. Knows nothing of what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from planner.graphs.files import write_atomically

_VERSION = 3


def default_cache() -> Path:
    """Return the user's cache folder, made if need be: ``$XDG_CACHE_HOME/remat-planner``."""
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "remat-planner"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(device: torch.device) -> str:
    """Name what a measurement depends on besides the operator: torch, the chip, the threads."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    return f"torch {torch.__version__}, {_cpu_model()}, {torch.get_num_threads()} threads"


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
    """
    path = _path(folder, kind, where)
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        if data["version"] != _VERSION or data["environment"] != where:
            return {}
        return {str(key): value for key, value in data["entries"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({error!r}): measuring again", stacklevel=2)
        return {}


def remember(folder: Path, kind: str, where: str, entries: Mapping[str, Any]) -> None:
    """Add entries to those of other processes; the file appears whole or not at all."""
    known = recall(folder, kind, where) | dict(entries)
    data = {"version": _VERSION, "environment": where, "entries": known}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_path(folder, kind, where), json.dumps(data, indent=0))


def _path(folder: Path, kind: str, where: str) -> Path:
    return folder / f"{kind}-{hashlib.sha256(where.encode()).hexdigest()[:12]}.json"
