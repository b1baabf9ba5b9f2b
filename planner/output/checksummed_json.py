"""Sealed JSON files: a format, a version and a body whose sha256 is beside it.

Writes a file whole or not at all; believes nothing that it reads. Knows nothing of what the bodies
hold.
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
    """Write a body under its seal; the file appears whole or not at all."""
    head = {"format": format, "version": version, "sha256": _seal(body)}
    write_atomically(path, _dump(head | {"plan": body}))


def read(path: str | Path, versions: Mapping[str, int]) -> tuple[str, Any]:
    """Return the format and the body of a file of one of these formats, each at its version.

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
        raise InvalidPlan(
            f"{path}: the plan has version {version}, this package reads up to {known}; "
            "update it with 'pip install -U remat-planner'"
        )
    if version != known:
        refuse(path, f"expected version {known}, found {version!r}")
    if data.get("sha256") != _seal(data.get("plan")):
        refuse(path, "its content does not match its sha256 seal, so it was damaged or edited")
    return name, data["plan"]


def checked(model: type[_Model], body: Any, path: str | Path) -> _Model:
    """Return the body as a model of its fields.

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
    """Raise ``InvalidPlan`` with a reason and what to do next."""
    hint = "make the plan again with planner.fit, or take an undamaged copy"
    raise InvalidPlan(f"{path}: {reason}; {hint}") from cause


def _parse(raw: bytes, path: str | Path) -> Any:
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        refuse(path, "it is not text", cause=error)
    except (ValueError, RecursionError) as error:
        refuse(path, f"it is not whole JSON ({error})", cause=error)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _seal(body: Any) -> str:
    return hashlib.sha256(_dump(body).encode()).hexdigest()


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
