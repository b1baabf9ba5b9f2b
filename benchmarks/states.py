"""An 8B model on one card, its optimizer's states on the host: ``python -m benchmarks.states``.

Llama-3-8B in bfloat16 with AdamW and 1 x 4,096 tokens is captured on meta for cards of the table,
and planned within budgets below what its parameters, gradients and states hold together. Times are
estimates, links reach what ``graphs.hardware.host_tier`` assumes, and nothing is run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

import planner
from benchmarks.offload import llama_8b
from benchmarks.record import record, show
from planner.graphs.hardware.allocators import EXPANDABLE
from planner.solvers import Limits

CARDS = ("A100-80GB", "H100-SXM", "GH200-96GB")
BUDGETS = ("70GB", "56GB", "44GB")
LIMITS = Limits(seconds=40.0)


@dataclass(frozen=True)
class Row:
    """Extra times are fractions of the plain step with all states on the device.

    ``needed_bytes`` is what the plan needs through the allocator, ``states_bytes`` and
    ``values_bytes`` what moves, ``optimizer_seconds`` the step of the optimizer, copies included.
    """

    card: str
    budget: str
    plain_bytes: int
    plain_seconds: float
    needed_bytes: int
    overhead_fraction: float
    bound_fraction: float
    states_bytes: int
    values_bytes: int
    optimizer_seconds: float
    solve_seconds: float


def row_of(card: str, budget: str, said: dict[str, Any]) -> Row:
    """Plan within a budget.

    Args:
        card: of the table.
        budget: as ``planner.fit`` takes it.
        said: the model and its step.
    """
    start = time.perf_counter()
    plan = planner.fit(**said, budget=budget, device=card, offload={"states": True})
    assert plan.needs is not None, "a card has an allocator"
    moved = [s.index for s in plan.schedule.steps if s.action.name == "offload"]
    return Row(
        card=card,
        budget=budget,
        plain_bytes=plan.plain_peak_bytes,
        plain_seconds=plan.plain_seconds,
        needed_bytes=plan.needs.needed_bytes,
        overhead_fraction=plan.overhead,
        bound_fraction=plan.bound_overhead,
        states_bytes=0 if plan.states is None else plan.states.moved_bytes,
        values_bytes=sum(plan.graph.values[v].size_bytes for v in moved),
        optimizer_seconds=plan.graph.ops[-1].seconds,
        solve_seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Plan for every card and budget, print a table and write a file."""
    with torch.device("meta"):
        model, tokens = llama_8b()
    said = {
        "model": model.train(),
        "inputs": tokens[:1],
        "optimizer": "adamw",
        "allocator": EXPANDABLE,
        "limits": LIMITS,
        "progress": "off",
    }
    rows = [row_of(card, budget, said) for card in CARDS for budget in BUDGETS]
    show("Llama-3-8B with states on the host", rows)
    print(record("states-on-host", rows))


if __name__ == "__main__":
    main()
