"""``offload=`` for one device: what a person may say of where values go, as a ``HostTier``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from planner.byte_sizes import parse_budget
from planner.errors import BadBudget, BadRequest
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.host_tier import HostTier, tier_of
from planner.graphs.hardware.tiers import Tier, tier_named

Offload = bool | str | Mapping[str, Any] | HostTier | None
"""What ``offload=`` takes; for several devices only ``True`` and ``False``."""

_KEYS = ("bytes", "directory", "bytes_per_second", "states", "tier")
_EXPECTED = (
    'expected True, the most bytes as a size ("64GB"), a directory for files (on a CPU), or a '
    f"mapping of {', '.join(_KEYS)}"
)


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
    if said is None or said is False:
        return None
    if isinstance(said, HostTier):
        return said
    options = {} if said is True else {_key(said): said} if isinstance(said, str) else said
    if not isinstance(options, Mapping) or (unknown := [k for k in options if k not in _KEYS]):
        found = repr(said) if not isinstance(options, Mapping) else f"a mapping with {unknown}"
        raise BadRequest(f"offload is {found}; {_EXPECTED}")
    directory = options.get("directory")
    try:
        behind = options.get("tier")
        if behind is not None and not isinstance(behind, Tier):
            behind = tier_named(str(behind))
        where = None if directory is None else str(directory)
        tier = tier_of(hardware, where, measure=measure, behind=behind)
        if "bytes" in options:
            tier = replace(tier, limit_bytes=parse_budget(options["bytes"]))
        if "bytes_per_second" in options:
            out, back = _rates(options["bytes_per_second"])
            tier = replace(tier, to_host=out, from_host=back)
        if "states" in options:
            tier = replace(tier, states=_yes_or_no(options["states"]))
    except (BadBudget, ValueError, TypeError) as error:
        raise BadRequest(f"offload is {said!r}: {error}; {_EXPECTED}") from error
    return tier


def _rates(said: Any) -> tuple[float, float]:
    """Return the rates there and back: one number for both, or a pair."""
    if isinstance(said, str) or not isinstance(said, Sequence):
        return float(said), float(said)
    if len(said) != 2:
        raise TypeError(f"bytes_per_second are {said!r}, expected a rate, or those there and back")
    return float(said[0]), float(said[1])


def _yes_or_no(said: Any) -> bool:
    if not isinstance(said, bool):
        raise TypeError(f"states are {said!r}, expected True or False")
    return said


def _key(said: str) -> str:
    """Tell a size from a directory."""
    try:
        parse_budget(said)
    except BadBudget:
        if os.sep in said or os.path.isdir(said):
            return "directory"
        raise BadRequest(f"offload is {said!r}; {_EXPECTED}") from None
    return "bytes"
