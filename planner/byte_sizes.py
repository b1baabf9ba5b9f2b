"""Bytes, rates, seconds and fractions as people write and read them.

Knows that GB is 10^9 bytes and GiB is 2^30, and how to print either. This is the only place where
text such as "40GB" exists; everywhere else a size is an ``int`` whose name ends in ``_bytes``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from planner.errors import BadBudget

_DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS = _DECIMAL | _BINARY
_TEXT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+|%)\s*")
_RATE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT])(i?)(b|B|bit|Byte)(?:/s|ps)\s*")
_COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_EXAMPLES = (
    "write it as '40GB' (10^9 bytes), '40GiB' (2^30), '80%' of the device, or an int of bytes"
)


def parse_budget(budget: str | float, capacity_bytes: Callable[[], int] | None = None) -> int:
    """Return a budget in bytes. ``capacity_bytes`` is asked only for a percentage.

    Raises:
        BadBudget: not a size, not positive, or a percentage of an unknown device.

    >>> parse_budget("40GB"), parse_budget("1.5 GiB"), parse_budget(1024)
    (40000000000, 1610612736, 1024)
    >>> parse_budget("80%", lambda: 1000)
    800
    """
    size = _parse_text(budget, capacity_bytes) if isinstance(budget, str) else _parse_number(budget)
    if size <= 0:
        raise BadBudget(f"the budget {budget!r} is not a positive size: {_EXAMPLES}")
    return size


def _parse_number(budget: float) -> int:
    exact = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not exact or not math.isfinite(budget) or budget != int(budget):
        raise BadBudget(f"the budget {budget!r} is not a whole number of bytes: {_EXAMPLES}")
    return int(budget)


def _parse_text(text: str, capacity_bytes: Callable[[], int] | None) -> int:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise BadBudget(f"the budget {text!r} is not a size with a unit: {_EXAMPLES}")
    number, unit = match[1], match[2].upper()
    if unit == "%":
        if capacity_bytes is None:
            raise BadBudget(f"the budget {text!r} needs a device of known memory: {_EXAMPLES}")
        return _scaled(number, capacity_bytes()) // 100
    if unit not in _UNITS:
        raise BadBudget(f"the budget {text!r} has the unknown unit {match[2]!r}: {_EXAMPLES}")
    return _scaled(number, _UNITS[unit])


def _scaled(number: str, factor: int) -> int:
    """Multiply a decimal text by an integer without the rounding of floats."""
    whole, _, fraction = number.partition(".")
    return int((whole + fraction) or "0") * factor // int(10 ** len(fraction))


def parse_rate(rate: str) -> float:
    """Return bytes a second; B is a byte and b a bit, as network cards count.

    Raises:
        ValueError: not a number with such a unit.

    >>> parse_rate("300GB/s"), parse_rate("400 Gb/s"), parse_rate("100Gbps")
    (300000000000.0, 50000000000.0, 12500000000.0)
    """
    match = _RATE.fullmatch(rate)
    if match is None:
        raise ValueError(f"{rate!r} is not a rate: write '300GB/s' (bytes) or '400Gb/s' (bits)")
    number, prefix, binary, unit = match.groups()
    factor = float((1024 if binary else 1000) ** _POWERS[prefix])
    return float(number) * factor / (8 if unit.startswith("b") else 1)


def parse_count(count: str | float) -> int:
    """Return a number of things, in the words for models: K, M, B (10^9) and T.

    Raises:
        ValueError: not a positive whole number.

    >>> parse_count("7.5B"), parse_count("350M"), parse_count("70e9"), parse_count(1000)
    (7500000000, 350000000, 70000000000, 1000)
    """
    text, scale = str(count).strip(), 1
    if text[-1:].upper() in _COUNTS:
        text, scale = text[:-1], _COUNTS[text[-1].upper()]
    try:
        number = Decimal("NaN" if isinstance(count, bool) else text) * scale
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number <= 0 or number != int(number):
        raise ValueError(f"{count!r} is not a positive whole number such as 70e9, '7.5B' or '350M'")
    return int(number)


def format_count(count: int) -> str:
    """Print a number of parameters with three digits.

    >>> format_count(7_000_000_000), format_count(124_439_808), format_count(12)
    ('7.00B', '124M', '12')
    """
    return _with_unit(count, ("", "K", "M", "B", "T"), 1000).replace(" ", "")


def format_bytes(size_bytes: int) -> str:
    """Print a size in decimal units with three digits.

    >>> format_bytes(5_214_000_000), format_bytes(96_200), format_bytes(0)
    ('5.21 GB', '96.2 KB', '0 B')
    """
    return _with_unit(size_bytes, ("B", "KB", "MB", "GB", "TB"), 1000)


def format_both(size_bytes: int) -> str:
    """Print a size in decimal and in binary units.

    >>> format_both(40 * 10**9)
    '40.0 GB (37.3 GiB)'
    """
    return f"{format_bytes(size_bytes)} ({_with_unit(size_bytes, _BINARY_NAMES, 1024)})"


_BINARY_NAMES = ("B", "KiB", "MiB", "GiB", "TiB")


def _with_unit(size: float, units: tuple[str, ...], base: int) -> str:
    power = 0
    while abs(size) >= base * 0.9995 and power < len(units) - 1:
        size, power = size / base, power + 1
    return f"{_three_digits(size) if power else int(size)} {units[power]}"


def format_seconds(seconds: float) -> str:
    """Print a duration with three digits.

    >>> format_seconds(0.01234), format_seconds(2.5), format_seconds(0.0)
    ('12.3 ms', '2.50 s', '0 s')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 0.9995:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns" if seconds else "0 s"


def _three_digits(number: float) -> str:
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:,.{digits}f}"


def format_percent(fraction: float) -> str:
    """Print a fraction as a percentage with two decimals, never as a negative zero.

    >>> format_percent(0.03217), format_percent(-1e-12)
    ('3.22%', '0.00%')
    """
    return f"{round(fraction * 100, 2) + 0.0:.2f}%"
