"""The checks for a card, as far as they have a meaning without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import gpu


def test_what_is_captured_on_meta_is_what_is_captured_here() -> None:
    rows = list(gpu.kernels("cpu"))
    assert len(rows) == 2 * len(list(gpu.layers()))
    assert {row.verdict for row in rows} == {"ok"}


@pytest.mark.slow
def test_a_plan_made_on_meta_is_applied_without_a_word() -> None:
    assert [row.verdict for row in gpu.guards("cpu")] == ["ok", "ok"]


def test_what_needs_a_card_is_skipped_and_what_fails_is_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(kind: str) -> Iterator[gpu.Row]:
        raise ValueError(kind)
        yield

    monkeypatch.setattr(gpu, "CHECKS", ((gpu.workspaces, True), (broken, False)))
    skipped, failed = gpu.rows("cpu")
    assert skipped.verdict == gpu.SKIPPED
    assert (failed.verdict, failed.found) == ("WRONG", "ValueError: cpu")
