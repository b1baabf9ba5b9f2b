"""The checks for a card, as far as they have a meaning without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.kernels import kernels, layers, overwritten
from benchmarks.gpu.rows import SKIPPED, Row
from benchmarks.gpu.steps import guards, workspaces


def test_what_is_captured_on_meta_is_what_is_captured_here() -> None:
    rows = list(kernels("cpu"))
    assert len(rows) == 2 * len(list(layers()))
    assert {row.verdict for row in rows} == {"ok"}


def test_rows_are_written_over_as_they_are_made() -> None:
    assert {(row.found, row.verdict) for row in overwritten("cpu")} == {("equal", "ok")}


@pytest.mark.slow
def test_a_plan_made_on_meta_is_applied_without_a_word() -> None:
    assert [row.verdict for row in guards("cpu")] == ["ok", "ok"]


def test_what_needs_a_card_is_skipped_and_what_fails_is_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(kind: str) -> Iterator[Row]:
        raise ValueError(kind)
        yield

    monkeypatch.setattr(gpu, "CHECKS", {"one": (workspaces, True), "two": (broken, False)})
    skipped, failed = gpu.rows("cpu")
    assert skipped.verdict == SKIPPED
    assert (failed.verdict, failed.found) == ("WRONG", "ValueError: cpu")
    assert [row.check for row in gpu.rows("cpu", ["one"])] == ["one"]
