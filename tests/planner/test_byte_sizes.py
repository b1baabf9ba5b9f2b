"""Sizes as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import BadBudget, PlannerError
from planner.byte_sizes import (
    format_both,
    format_bytes,
    format_percent,
    format_seconds,
    parse_budget,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("40GB", 40 * 10**9),
        ("40GiB", 40 * 2**30),
        (" 1.5 gib ", 3 * 2**29),
        ("0.1GB", 10**8),
        (".5KB", 500),
        ("12B", 12),
        ("3MiB", 3 * 2**20),
        ("9007199254740993B", 2**53 + 1),  # a float would lose the last byte
        (7, 7),
        (4e10, 4 * 10**10),
    ],
)
def test_sizes(text: str | float, size_bytes: int) -> None:
    assert parse_budget(text) == size_bytes


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        ("", "not a size"),
        ("40", "not a size with a unit"),
        ("forty", "not a size"),
        ("-3GB", "not a size"),
        ("1e3GB", "not a size"),
        ("40Gb/s", "not a size"),
        ("40QB", "unknown unit 'QB'"),
        ("0GB", "not a positive size"),
        ("0.2B", "not a positive size"),
        (0, "not a positive size"),
        (-1, "not a positive size"),
        (1.5, "not a whole number"),
        (math.nan, "not a whole number"),
        (math.inf, "not a whole number"),
        (True, "not a whole number"),
        (None, "not a whole number"),
        ("80%", "needs a device"),
    ],
)
def test_bad_budgets_say_what_was_found_and_how_to_write_it(budget: object, found: str) -> None:
    with pytest.raises(BadBudget, match="40GiB") as caught:
        parse_budget(budget)  # type: ignore[arg-type]
    assert found in str(caught.value)
    assert isinstance(caught.value, PlannerError)
    assert isinstance(caught.value, ValueError)


def test_percentage_of_the_device() -> None:
    assert parse_budget("80%", lambda: 79 * 2**30) == 79 * 2**30 * 80 // 100
    assert parse_budget("12.5%", lambda: 1000) == 125


def test_capacity_is_not_asked_for_without_a_percentage() -> None:
    assert parse_budget("1GB", lambda: pytest.fail("asked")) == 10**9


@given(st.integers(1, 10**15))
def test_printed_sizes_are_right_to_three_digits(size_bytes: int) -> None:
    text = format_bytes(size_bytes).replace(",", "")
    assert parse_budget(text) == pytest.approx(size_bytes, rel=6e-3)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(999, "999 B (999 B)"), (999_950, "1.00 MB (977 KiB)"), (2**30, "1.07 GB (1.00 GiB)")],
)
def test_both_units(size_bytes: int, text: str) -> None:
    assert format_both(size_bytes) == text


def test_durations_and_fractions() -> None:
    assert [format_seconds(s) for s in (75.0, 0.9999, 1.5e-6, 2e-9)] == [
        "75.0 s",
        "1.00 s",
        "1.50 us",
        "2.00 ns",
    ]
    assert format_percent(0.12345) == "12.35%"
