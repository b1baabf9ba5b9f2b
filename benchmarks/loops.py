"""Training loops as people write them, plain and planned: ``python -m benchmarks.loops [NAME...]``.

Each is run twice from the same seeds. Planned, it must equal the plain run in every loss and every
parameter, or be refused by an error that names the cause; and ``fit`` and ``apply`` must leave the
model and the random generators as they were.
"""

from __future__ import annotations

import copy
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import planner
from benchmarks.loop_kinds import LOOPS
from benchmarks.loop_kinds.loop import Loop, Setup, batch
from benchmarks.record import record, show


@dataclass(frozen=True)
class Row:
    """What became of one loop: "equal", "refused" with what was said, or what is at fault."""

    name: str
    kind: str
    expected: str
    verdict: str
    said: str


def row_of(loop: Loop) -> Row:
    """Run a loop plain and planned, and compare.

    >>> row_of(LOOPS["loss_inside"]).verdict
    'equal'
    """
    said = ""
    try:
        verdict = _compared(loop)
    except planner.PlannerError as error:
        verdict, said = "refused", str(error)
    expected = "refused" if loop.refused else "equal"
    if verdict == "refused" and loop.refused not in said:
        verdict = "refused for another cause"
    return Row(loop.name, loop.kind, expected, verdict, said)


def _compared(loop: Loop) -> str:
    plain = _made(loop)
    want = _trained(plain.model, plain)
    setup = _made(loop)
    before = _state(setup.model)
    fit = {"inputs": batch(), "optimizer": "sgd", **setup.fit}
    planned, error = setup.model, None
    try:
        planned = planner.fit(setup.model, "1GB", **fit).apply(setup.model, **setup.apply)
    except planner.PlannerError as refused:
        error = refused
    if (trace := _difference(before, _state(setup.model))) is not None:
        return f"a trace is left: {trace}"
    if error is not None:
        raise error
    got = _trained(planned, setup)
    return "equal" if want == got else "another loss or parameter"


def _made(loop: Loop) -> Setup:
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    return loop.make()


def _trained(called: nn.Module, setup: Setup) -> list[list[float]]:
    """Train; return every loss, and the parameters and buffers at the end."""
    random.seed(8), np.random.seed(8), torch.manual_seed(8)
    optimizer = torch.optim.SGD(setup.model.parameters(), 0.05)
    losses = []
    for k in range(setup.steps):
        optimizer.zero_grad()
        loss = setup.step(called, k)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    tensors = (*setup.model.parameters(), *setup.model.buffers())
    return [losses, *(t.detach().flatten().tolist() for t in tensors)]


def _state(model: nn.Module) -> dict[str, Any]:
    """Return what ``fit`` and ``apply`` must not change."""
    found: dict[str, Any] = {
        "Python's generator": random.getstate(),
        "NumPy's generator": repr(np.random.get_state()),
        "torch's generator": torch.get_rng_state().tolist(),
    }
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                found[f"{path}.{name}"] = value if isinstance(value, Tensor) else copy.copy(value)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return found | {name: t.detach().flatten().tolist() for name, t in tensors.items()}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    for name in {**before, **after}:
        a, b = before.get(name), after.get(name)
        plain = isinstance(a, (list, dict, tuple, int, float, str, type(None)))
        if (name in before) != (name in after) or (plain and repr(a) != repr(b)):
            return name
    return None


def main() -> int:
    """Run the loops named, or all; return 1 if one is at fault."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or LOOPS
    rows = [row_of(LOOPS[name]) for name in names]
    show("loops", rows)
    if not sys.argv[1:]:
        record("loops", rows)
    faults = [row for row in rows if row.verdict != row.expected]
    equal = sum(row.verdict == "equal" for row in rows)
    print(f"{len(rows)} loops: {equal} equal, {len(faults)} at fault")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
