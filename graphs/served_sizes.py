"""Up to which sizes a captured step may be run, in words.

Reads what a signature lists under "dynamic"; imports no torch, so that plans can be shown without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def too_large(planned: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sizes of a call that are larger than what is served.

    Args:
        planned: of the largest call.
        found: of another call.
    """
    if planned["spec"] != found["spec"]:
        return
    for i, dims, name in planned.get("dynamic", ()):
        a, b = planned["leaves"][i], found["leaves"][i]
        if isinstance(b, list) and len(a[0]) == len(b[0]):
            for d in (d for d in dims if b[0][d] > a[0][d]):
                yield f"{_called(name)} has {_sized(b[0][d], d)}, the plan serves up to {a[0][d]}"


def served(signature: Mapping[str, Any]) -> str:
    """Say up to which sizes a step may be run, "" if at the very ones alone.

    >>> served({"leaves": [[[4, 9], [9, 1]]], "dynamic": [[0, [0, 1], "ids"]]})
    'ids up to 4 rows and 9 in dimension 1'
    """
    names: dict[str, list[str]] = {}
    for i, dims, name in signature.get("dynamic", ()):
        limit = " and ".join(_sized(signature["leaves"][i][0][d], d) for d in dims)
        names.setdefault(limit, []).append(name)
    return "; ".join(f"{', '.join(who)} up to {limit}" for limit, who in names.items())


def _called(name: str) -> str:
    return name if name.startswith("argument ") else f"argument {name}"


def _sized(count: int, dimension: int) -> str:
    """Say a size.

    >>> _sized(3, 0), _sized(7, 1)
    ('3 rows', '7 in dimension 1')
    """
    if dimension:
        return f"{count} in dimension {dimension}"
    return f"{count} row{'s' if count != 1 else ''}"
