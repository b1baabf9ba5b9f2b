"""Plan files changed by hand and sealed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the sealed part of a file and seal it again, as a careful forger would."""
    data = json.loads(path.read_text())
    change(data["plan"])
    text = json.dumps(data["plan"], sort_keys=True, separators=(",", ":"))
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(data))
