"""Keeping, recomputing and moving values to the host: ``python -m benchmarks.offload``.

Models are captured on meta for a card of the table, and planned within five budgets between the
least that recomputation alone is known to reach and what the plain step holds: extra time as a
fraction of the plain step of recomputation alone, of moving alone, of moving all that the backward
pass reads as people do today (``torch.autograd.graph.save_on_cpu``: copies that the device waits
for), and of a plan that chooses, with what is proved of it. Bytes are those of tensors; times are
estimates, and links reach what ``graphs.hardware.host_tier`` assumes. Nothing is run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

from benchmarks.record import record, show
from planner.graphs import (
    Action,
    Clock,
    Graph,
    Phase,
    Schedule,
    Step,
    Subject,
    plain_schedule,
    simulate,
)
from planner.graphs.hardware.devices import device
from planner.graphs.hardware.host_tier import HostTier, tier_of
from planner.graphs.host_memory import movable
from planner.planning import captured_step
from planner.request import request_of
from planner.solvers import Limits, minimum_budget, solve
from planner.solvers.model.gaps import gaps_of
from planner.solvers.model.problem import flatten
from planner.solvers.offload import solve_with_host

CARDS = ("A100-80GB", "H100-SXM", "GH200-96GB", "RTX-4090")
"""PCIe 4, PCIe 5, NVLink-C2C, and PCIe 4 beside less memory."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
LIMITS = Limits(seconds=20.0)


@dataclass(frozen=True)
class Row:
    """Extra times are fractions of the plain step; -1 is for what does not fit.

    ``as_usual_peak_bytes`` is what moving everything holds, whatever the budget.
    """

    model: str
    card: str
    share: float
    budget_bytes: int
    plain_bytes: int
    recomputing_fraction: float
    moving_fraction: float
    as_usual_fraction: float
    as_usual_peak_bytes: int
    ours_fraction: float
    bound_fraction: float
    recomputing_bound_fraction: float
    moved_bytes: int
    to_host_busy_fraction: float
    from_host_busy_fraction: float
    solve_seconds: float


class LossAlone(nn.Module):
    """A language model of transformers that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the loss of one call."""
        loss: Tensor = self.model(input_ids=input_ids, labels=input_ids).loss
        return loss


def gpt2() -> tuple[nn.Module, Tensor]:
    """Return GPT-2 (124M, float32) and 8 x 1,024 tokens."""
    config = transformers.GPT2Config(use_cache=False, loss_type="ForCausalLMLoss")
    return LossAlone(transformers.GPT2LMHeadModel(config)), torch.zeros(8, 1024, dtype=torch.long)


def llama() -> tuple[nn.Module, Tensor]:
    """Return a Llama of 1.2 billion parameters in bfloat16 and 4 x 2,048 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    made = LossAlone(transformers.LlamaForCausalLM(config).bfloat16())
    return made, torch.zeros(4, 2048, dtype=torch.long)


def resnet50() -> tuple[nn.Module, Tensor]:
    """Return ResNet-50 (float32) with a mean for a loss, and 128 pictures."""
    made = transformers.ResNetModel(transformers.ResNetConfig())

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = made

        def forward(self, x: Tensor) -> Tensor:
            loss: Tensor = self.body(x).pooler_output.square().mean()
            return loss

    return Mean(), torch.zeros(128, 3, 224, 224)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "gpt2": gpt2,
    "llama 1.2B": llama,
    "resnet50": resnet50,
}


def as_usual(graph: Graph) -> Schedule:
    """Move all that the backward pass reads, as soon as it is made, and back where it is read."""
    turn = next(i for i, op in enumerate(graph.ops) if op.phase is Phase.BACKWARD)
    gaps = gaps_of(flatten(graph), range(len(graph.ops)), movable(graph))
    before: dict[int, list[Step]] = {}
    for gap in gaps:
        if gap.after < turn <= gap.before:
            out = [Step(Action.OFFLOAD, gap.value), Step(Action.FREE, gap.value)]
            before.setdefault(gap.after + 1, []).extend(out)
            before.setdefault(gap.before, []).append(Step(Action.FETCH, gap.value))
    steps: list[Step] = []
    for step in plain_schedule(graph).steps:
        if step.action.subject is Subject.OP:
            steps += before.get(step.index, ())
        steps.append(step)
    return Schedule(tuple(steps))


def rows_of(name: str, card: str, graph: Graph, tier: HostTier) -> list[Row]:
    """Plan a captured step within each budget.

    Args:
        name, card: what the rows say.
        graph: the step.
        tier: where its values may go.
    """
    plain = simulate(graph, plain_schedule(graph))
    usual = simulate(graph, as_usual(graph), link_bytes_per_second=tier.rates)
    least = minimum_budget(graph, limits=LIMITS).least_bytes

    def extra(seconds: float | None) -> float:
        return -1.0 if seconds is None else seconds / plain.seconds - 1

    rows: list[Row] = []
    for share in SHARES:
        budget = int(least + share * (plain.peak_bytes - least))
        alone = solve(graph, budget, limits=LIMITS)
        start = time.perf_counter()
        found = solve_with_host(graph, budget, tier, limits=LIMITS)
        spent = time.perf_counter() - start
        schedule = found.solution.schedule
        assert schedule is not None, "recomputation alone is known to fit"
        trace = simulate(graph, schedule, link_bytes_per_second=tier.rates)
        moved = [s.index for s in schedule.steps if s.action is Action.OFFLOAD]
        busy = [
            trace.busy_seconds.get(clock, 0.0) / trace.seconds
            for clock in (Clock.TO_HOST, Clock.FROM_HOST)
        ]
        rows.append(
            Row(
                model=name,
                card=card,
                share=share,
                budget_bytes=budget,
                plain_bytes=plain.peak_bytes,
                recomputing_fraction=extra(found.recomputing_seconds),
                moving_fraction=extra(found.moving_seconds),
                as_usual_fraction=extra(usual.seconds if usual.peak_bytes <= budget else None),
                as_usual_peak_bytes=usual.peak_bytes,
                ours_fraction=extra(trace.seconds),
                bound_fraction=extra(found.solution.bound_seconds),
                recomputing_bound_fraction=extra(alone.bound_seconds),
                moved_bytes=sum(graph.values[v].size_bytes for v in moved),
                to_host_busy_fraction=busy[0],
                from_host_busy_fraction=busy[1],
                solve_seconds=spent,
            )
        )
    return rows


def main(names: list[str]) -> None:
    """Plan every model for every card, print a table and write a file.

    Args:
        names: of models; none are all of them.
    """
    rows: list[Row] = []
    for name in names or MODELS:
        with torch.device("meta"):
            model, inputs = MODELS[name]()
            model = model.train()
        for card in CARDS:
            said = {"inputs": inputs, "device": card, "progress": "off"}
            graph = captured_step(request_of(model, said)).graph
            rows += rows_of(name, card, graph, tier_of(device(card)))
    show("Keep, recompute or move", rows)
    print(record("offload", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
