"""A device as a JSON file, for a card that the table does not have or has otherwise.

Knows the form of the file and checks all of it. What a figure means is in
``graphs.hardware.columns``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from planner.graphs.files import write_atomically
from planner.graphs.hardware.columns import Device, Node

FORMAT = "remat-planner-device"
VERSION = 1
_NEXT = "save_device(device('L4'), path) writes a whole one to begin with"


def save_device(device: Device, path: str | Path) -> None:
    """Write a device as JSON; the file appears whole or not at all."""
    write_atomically(path, json.dumps(device_to_dict(device), indent=2) + "\n")


def device_to_dict(device: Device) -> dict[str, Any]:
    """Return a device as plain JSON types."""
    return {"format": FORMAT, "version": VERSION} | asdict(device)


def load_device(path: str | Path) -> Device:
    """Read a device from a JSON file.

    The file holds ``"format": "remat-planner-device"``, ``"version": 1`` and columns of
    ``Device``; those with a default may be left out.

    Raises:
        ValueError: there is no such file, it is not JSON, or a column is missing, unknown or not
            what it should be.

    >>> load_device("none.json")
    Traceback (most recent call last):
    ValueError: none.json cannot be read: No such file or directory; ...
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}; expected a device's file; {_NEXT}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON (truncated?): {error}; {_NEXT}") from error
    return device_from_dict(data, path)


def device_from_dict(data: Any, path: str | Path) -> Device:
    """Rebuild a device.

    Args:
        data: what ``device_to_dict`` returned.
        path: of the file that it is from, named in errors.

    Raises:
        ValueError: a column is missing, unknown or not what it should be.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        _refuse(path, f"expected a JSON object with format {FORMAT!r}, found {str(data)[:80]}")
    if data.get("version") != VERSION:
        _refuse(path, f"version {data.get('version')!r} is not {VERSION}: update the package")
    body = {column: value for column, value in data.items() if column not in _HEAD}
    if isinstance(body.get("node"), dict):
        body["node"] = _made(Node, body["node"], path, "node.")
    found: Device = _made(Device, body, path, "")
    return found


_HEAD = ("format", "version")


def _made(kind: Callable[..., Any], body: Mapping[str, Any], path: str | Path, of: str) -> Any:
    columns = {column.name: column for column in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(body.keys() - columns.keys()):
        _refuse(path, f"unknown column {of}{unknown[0]}; the columns are {', '.join(columns)}")
    needed = [name for name, column in columns.items() if column.default is MISSING]
    if lacking := [name for name in needed if name not in body]:
        _refuse(path, f"{of}{lacking[0]} is missing; needed are {', '.join(needed)}; {_NEXT}")
    values = {name: _value(columns[name], value, path, of) for name, value in body.items()}
    try:
        return kind(**values)
    except ValueError as error:  # figures that make no sense
        raise ValueError(f"{path}: {error}") from error


def _value(column: Field[Any], value: Any, path: str | Path, of: str) -> Any:
    """Return a value of a column if it is of the column's type, as its annotation says it."""
    fits, expected = _TYPES[str(column.type).removesuffix(" | None")]
    if value is None and column.default is None:
        return value
    if not fits(value):
        _refuse(path, f"{of}{column.name} is {value!r}: expected {expected}")
    return int(value) if expected == _WHOLE else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_WHOLE = "a whole number"
_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "int": (lambda value: _number(value) and value == int(value), _WHOLE),
    "float": (_number, "a number"),
    "Mapping[str, float]": (
        lambda value: isinstance(value, dict) and all(map(_number, value.values())),
        'an object of dtypes and FLOP/s, such as {"float32": 20e12}',
    ),
    "Node": (lambda value: isinstance(value, Node), "an object of a node's columns, or null"),
}


def _refuse(path: str | Path, reason: str) -> NoReturn:
    raise ValueError(f"{path}: {reason}")
