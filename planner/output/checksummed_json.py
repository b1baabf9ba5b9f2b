"""JSON files under a checksum: a format, a version, and a body whose sha256 is beside it.

Writes a file whole or not at all; believes nothing that it reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from planner.errors import InvalidPlan
from planner.graphs.files import write_atomically

_Model = TypeVar("_Model", bound=BaseModel)


def write(path: str | Path, format: str, version: int, body: Mapping[str, Any]) -> None:
    """Write a body and its checksum; the file appears whole or not at all.

    Args:
        path: where to.
        format, version: how a reader knows what the body is.
        body: plain JSON types.
    """
    head = {"format": format, "version": version, "sha256": _checksum(body)}
    write_atomically(path, _dump(head | {"plan": body}))


def read(path: str | Path, versions: Mapping[str, int]) -> tuple[str, int, Any]:
    """Return the format, the version and the body of a file of one of these formats.

    Args:
        path: of the file.
        versions: by format, up to which version it can be read.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, or of a newer version.
        OSError: the file cannot be opened.
    """
    data = _parse(Path(path).read_bytes(), path)
    name = data.get("format") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in versions:
        expected = " or ".join(map(repr, versions))
        refuse(path, f"expected a JSON object with format {expected}: not a plan of this package")
    version, known = data.get("version"), versions[name]
    if isinstance(version, int) and version > known:
        newer(path, f"the plan has version {version}, this package reads up to {known}")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        refuse(path, f"expected a version from 1 to {known}, found {version!r}")
    if data.get("sha256") != _checksum(data.get("plan")):
        refuse(path, "its content does not match its sha256 checksum, so it was damaged or edited")
    return name, version, data["plan"]


def checked(model: type[_Model], body: Any, path: str | Path) -> _Model:
    """Return the body as a model of its fields.

    Args:
        model: what the fields must be.
        body: what the file holds.
        path: named in errors.

    Raises:
        InvalidPlan: a field is missing, unknown or of the wrong type; the message names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "plan"
        refuse(path, f"field {where!r}: {first['msg'].lower()}", cause=error)


def refuse(path: str | Path, reason: str, *, cause: Exception | None = None) -> NoReturn:
    """Raise ``InvalidPlan`` with a reason and what to do next.

    Args:
        path: of the file.
        reason: what is wrong with it.
        cause: what was raised when that was found.
    """
    hint = "make the plan again with planner.fit, or take an undamaged copy"
    raise InvalidPlan(f"{path}: {reason}; {hint}") from cause


def newer(path: str | Path, reason: str) -> NoReturn:
    """Raise ``InvalidPlan`` for a file of a newer version of this package."""
    raise InvalidPlan(f"{path}: {reason}; update it with 'pip install -U remat-planner'")


def _parse(raw: bytes, path: str | Path) -> Any:
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        refuse(path, "it is not text", cause=error)
    except (ValueError, RecursionError) as error:
        refuse(path, f"it is not whole JSON ({error})", cause=error)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _checksum(data: Any) -> str:
    return hashlib.sha256(_dump(data).encode()).hexdigest()


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
