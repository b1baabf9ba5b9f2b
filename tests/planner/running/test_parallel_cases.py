"""Models parallelized by their owner, in less usual ways: bits and bytes on two ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planner.running.parallel_cases import CASES, MEASURED, run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_two(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_compute_what_they_do_plain(ranks: list[dict[str, Any]], case: str) -> None:
    """Three steps of AdamW: losses, gradients and parts, bit for bit."""
    for found in ranks:
        assert len(found[case]["equal"]) > 20
        assert all(found[case]["equal"])
        assert found[case]["again"], "something is made again"


@pytest.mark.parametrize("case", MEASURED)
def test_memory_is_what_was_planned(ranks: list[dict[str, Any]], case: str) -> None:
    for found in ranks:
        assert found[case]["predicted"] == pytest.approx(found[case]["measured"], rel=0.01)
