"""The optimizer's step of many alike units, told from a few."""

from __future__ import annotations

from itertools import product

import pytest

from planner.sharding.step_graph.optimizer_pass import optimizer_of
from tests.by_default import slow_but

LAYER = (((8, 16), 4), ((16,), 4), ((3, 16), 2))
CASES = list(product(("adamw", "sgd", "adafactor", "asgd", "adam_loop"), (True, False)))
QUICK = {*CASES} - {("asgd", False), ("adafactor", True)}
EMBEDDING, NORM = (((50, 16), 4),), (((16,), 4),)


@pytest.mark.parametrize(("name", "accelerated"), slow_but(QUICK, CASES))
def test_a_few_alike_units_tell_what_all_hold(name: str, accelerated: bool) -> None:
    parts = [NORM, EMBEDDING, *[LAYER] * 7, NORM, *[LAYER[:2]] * 5]
    found = optimizer_of(parts, name, accelerated=accelerated)
    whole = optimizer_of([sum(parts, ())], name, accelerated=accelerated)
    assert found == whole
    assert found.moved_bytes > 0


def test_an_optimizer_of_ones_own_is_run_on_all() -> None:
    import torch

    seen = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def, override]
            seen.append(len(self.param_groups[0]["params"]))

    def make(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return Counting(parameters, lr=0.1)

    optimizer_of([LAYER] * 9, make, accelerated=False)
    assert set(seen) == {27}
