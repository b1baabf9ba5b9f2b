"""Mixtures of experts parallelized by transformers' expert plans: bits and bytes on two ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planner.running.expert_cases import CASES, run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_two(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_compute_what_they_do_plain(ranks: list[dict[str, Any]], case: str) -> None:
    """Three steps of AdamW: losses, gradients and parts, bit for bit."""
    for found in ranks:
        for planned in found[case].values():
            assert len(planned["equal"]) > 20
            assert all(planned["equal"])
        assert found[case]["half way"]["again"], "something is made again"


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_was_planned(ranks: list[dict[str, Any]], case: str) -> None:
    for found in ranks:
        for planned in found[case].values():
            assert planned["measured"] <= planned["budget"]
            assert planned["predicted"] == pytest.approx(planned["measured"], rel=0.01)
