"""Mixtures of experts parallelized by transformers' expert plans: bits and bytes on two ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planner.running.expert_cases import CASES, UNEVEN, UNMEASURED, every_case
from tests.planner.running.parallel_cases import run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_two(tmp_path_factory.mktemp("ranks"), every_case)


@pytest.mark.parametrize("case", CASES)
def test_ranks_compute_what_they_do_plain(ranks: list[dict[str, Any]], case: str) -> None:
    """Three steps of AdamW: losses, gradients and parts, bit for bit."""
    for found in ranks:
        for planned in found[case].values():
            assert len(planned["equal"]) > 20
            assert all(planned["equal"])
        assert found[case]["half way"]["again"], "something is made again"


@pytest.mark.parametrize("case", sorted(set(CASES) - set(UNMEASURED)))
def test_memory_is_what_was_planned(ranks: list[dict[str, Any]], case: str) -> None:
    """Where the router decides what a rank receives: the one that receives what was planned for."""
    for where in ranks[0][case]:
        plans = [found[case][where] for found in ranks]
        for plan in plans:
            assert plan["measured"] <= plan["predicted"] <= plan["budget"]
        most = max(plan["measured"] for plan in plans)
        if case not in UNEVEN:
            assert plans[0]["predicted"] == pytest.approx(most, rel=0.01)


def test_all_ranks_refuse_a_step_that_needs_more(ranks: list[dict[str, Any]]) -> None:
    said = {found["overflowing"]["said"] for found in ranks}
    (text,) = said
    assert "the router sends 2048 rows to rank 1 of the 2" in text
    assert "memory for 1536, 1.5 times the even share of its largest call" in text
    assert "capacity_factor=2 or more" in text


def test_what_is_planned_for_counts_in_rows_at_smaller_sizes(ranks: list[dict[str, Any]]) -> None:
    """All rows of three quarters of the samples are half as many more than the even share."""
    assert all(found["overflowing"]["smaller"] for found in ranks)
