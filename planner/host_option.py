"""``offload=`` for one device: what a person may say of where values go, as a ``HostTier``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from planner.byte_sizes import format_both, parse_budget
from planner.errors import BadBudget, BadCluster, BadRequest
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.host_tier import HostTier, tier_of
from planner.graphs.hardware.tiers import Tier, tier_named

Offload = bool | str | os.PathLike[str] | Mapping[str, Any] | HostTier | None
"""What ``offload=`` takes; for several devices only ``True``, ``False`` and bytes."""


def host_tier(said: Offload, hardware: Device, *, measure: bool = False) -> HostTier | None:
    """Return where values of one device may go, ``None`` for nowhere.

    Args:
        said: as ``Request`` has it.
        hardware: the device.
        measure: time what no data sheet knows.

    Raises:
        BadRequest: it is none of what is expected, or the device has no such place.

    >>> from planner.graphs.hardware.devices import device
    >>> host_tier("64GB", device("RTX 4090")).limit_bytes, host_tier(None, device("cpu"))
    (64000000000, None)
    """
    options = checked_offload(said)
    if options is None or isinstance(options, HostTier):
        return options
    directory, behind = options.get("directory"), options.get("tier")
    try:
        tier = tier_of(hardware, directory, measure=measure, behind=behind)
    except (OSError, ValueError) as error:
        raise BadRequest(f"offload is {said!r}: {error}; {_EXPECTED}") from error
    limit: int | None = options.get("bytes", tier.limit_bytes)
    room = math.inf if tier.directory is None else tier.limit_bytes or math.inf
    if limit is not None and limit > room:
        raise BadRequest(
            f"offload is {said!r}, and of the disk of {tier.directory!r} no more than "
            f"{format_both(int(room))} can be had: free some, or say fewer bytes= or "
            "another directory="
        )
    out, back = options.get("bytes_per_second", (tier.to_host, tier.from_host))
    states = options.get("states", False)
    return replace(tier, limit_bytes=limit, to_host=out, from_host=back, states=states)


def checked_offload(said: Offload) -> HostTier | dict[str, Any] | None:
    """Return what was said, checked as far as no device need be known: a tier, or options.

    Args:
        said: as ``Request`` has it.

    Raises:
        BadRequest: it is none of what is expected.

    >>> checked_offload({"bytes": "2GB", "bytes_per_second": (2e9, 1e9)})
    {'bytes': 2000000000, 'bytes_per_second': (2000000000.0, 1000000000.0)}
    """
    if said is None or said is False:
        return None
    if isinstance(said, HostTier):
        return said
    options: Any = {} if said is True else said
    if isinstance(said, str | os.PathLike):
        options = {_key(said): said}
    if not isinstance(options, Mapping):
        raise BadRequest(f"offload is {said!r}; {_EXPECTED}")
    if unknown := [key for key in options if key not in _OPTIONS]:
        raise BadRequest(f"offload is a mapping with {unknown}; {_EXPECTED}")
    try:
        return {key: _OPTIONS[key](value) for key, value in options.items()}
    except (BadBudget, ValueError, TypeError) as error:
        raise BadRequest(f"offload is {said!r}: {error}; {_EXPECTED}") from error


def node_limit_bytes(said: Offload) -> float:
    """Return the most that the states of several devices may take of a node's host.

    Args:
        said: as ``Request`` has it.

    Raises:
        BadCluster: it is more than whether they may be there, and in how many bytes.

    >>> node_limit_bytes("1TB"), node_limit_bytes(True)
    (1000000000000.0, inf)
    """
    options = {} if said is None or isinstance(said, bool) else checked_offload(said)
    if not isinstance(options, dict) or set(options) - {"bytes"}:
        raise BadCluster(
            f"offload is {said!r}: for several devices it says whether states may move to the "
            'host, True or False, or into how many bytes of a node\'s memory at most ("1TB")'
        )
    return float(options.get("bytes", math.inf))


def moves_states(said: Offload) -> bool:
    """Tell whether states of the optimizer may wait on the host, too.

    Args:
        said: as ``Request`` has it.

    >>> moves_states(True), moves_states({"states": True})
    (False, True)
    """
    options = checked_offload(said)
    if isinstance(options, HostTier):
        return options.states
    return options is not None and options.get("states", False)


def _rates(said: Any) -> tuple[float, float]:
    """Return the rates there and back: one number for both, or a pair."""
    pair = (said, said) if isinstance(said, str) or not isinstance(said, Sequence) else said
    numbers = [r for r in pair if isinstance(r, Real) and not isinstance(r, bool)]
    if len(pair) != 2 or not all(0 < float(r) < math.inf for r in numbers) or len(numbers) != 2:
        raise TypeError(
            f"bytes_per_second are {said!r}, expected a number of more than 0, or a pair of those "
            "there and back"
        )
    out, back = pair
    return float(out), float(back)


def _yes_or_no(said: Any) -> bool:
    if not isinstance(said, bool):
        raise TypeError(f"states are {said!r}, expected True or False")
    return said


def _directory(said: Any) -> str:
    if not isinstance(said, str | os.PathLike) or not os.fspath(said):
        raise TypeError(f"the directory is {said!r}, expected a path")
    return os.fspath(said)


def _tier(said: Any) -> Tier:
    return said if isinstance(said, Tier) else tier_named(str(said))


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "bytes": parse_budget,
    "directory": _directory,
    "bytes_per_second": _rates,
    "states": _yes_or_no,
    "tier": _tier,
}
"""What a mapping may say, and what checks it."""
_EXPECTED = (
    'expected True, the most bytes as a size ("64GB"), a directory for files (on a CPU), or a '
    f"mapping of {', '.join(_OPTIONS)}"
)


def _key(said: str | os.PathLike[str]) -> str:
    """Tell a size from a directory."""
    if isinstance(said, os.PathLike):
        return "directory"
    try:
        parse_budget(said)
    except BadBudget:
        if os.sep in said or os.path.isdir(said):
            return "directory"
        raise BadRequest(f"offload is {said!r}; {_EXPECTED}") from None
    return "bytes"
