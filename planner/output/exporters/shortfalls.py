"""What a format that knows stages and switches cannot say of a plan, and facts it is told by.

Shared by the formats of DeepSpeed and accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.byte_sizes import format_bytes
from planner.errors import BadSpec
from planner.plan.sharded_step_plan import ShardedStepPlan, UnitKind


def recomputation_notes(plan: ShardedStepPlan, instead: str) -> Iterator[str]:
    if units := recomputing(plan):
        yield (
            f"the plan recomputes ops chosen one by one in {units} of {len(plan.units)} units; "
            f"{instead}. With nothing recomputed one rank would hold "
            f"{format_bytes(plan.step.plain_peak_bytes)}, the budget is "
            f"{format_bytes(plan.budget_bytes)}; the format fsdp2 is a script that does follow "
            "the plan"
        )


def mixed_notes(plan: ShardedStepPlan, instead: str) -> Iterator[str]:
    if plan.stage.mixed:
        yield (
            f"the plan keeps the gathered weight of {plan.kept} of {len(plan.units)} units until "
            f"backward; {instead}"
        )


def table_notes(plan: ShardedStepPlan) -> Iterator[str]:
    if tables := sum(unit.row_wise for unit in plan.units):
        yield (
            f"the plan looks up the rows of {tables} tables of embeddings where they are; this "
            "format gathers them whole in every step, which takes longer and may not fit"
        )


def chunk_notes(plan: ShardedStepPlan) -> Iterator[str]:
    if plan.root is not None:
        yield (
            "the plan computes head and loss in chunks; this format computes them whole, which "
            "holds more and may not fit"
        )


def recomputing(plan: ShardedStepPlan) -> int:
    """Return how many units run an op again."""
    return sum(len(u.schedule.order) > len(plan.kinds[u.kind].graph.ops) for u in plan.units)


def computes_in_half(plan: ShardedStepPlan) -> bool:
    """Tell whether compute is in bfloat16, by policy or because the model is."""
    stored = {dtype for kind in plan.kinds for _, _, dtype, _ in parameters_of(kind)}
    return plan.configuration.precision == "bfloat16" or stored == {"bfloat16"}


def parameters_of(kind: UnitKind) -> list[Any]:
    return [member[:4] for member in kind.signature.get("parameters", ())]


def host_notes(plan: ShardedStepPlan, instead: str) -> Iterator[str]:
    """Say that a format offloads all states or none, if the plan offloads some units'.

    Args:
        plan: to be written.
        instead: what the file has every unit do.
    """
    if plan.configuration.staying:
        there = sum(plan.configuration.on_host(unit.path) for unit in plan.units)
        yield (
            f"states of {there} of {len(plan.units)} units are on the host in the plan; {instead}: "
            "less memory, more time"
        )


def refuse_parted(plan: ShardedStepPlan, name: str) -> None:
    """Refuse to write what would train something else: other ranks would get other samples.

    Args:
        plan: to be written.
        name: of the format.

    Raises:
        BadSpec: the plan parts layers over ranks.
    """
    if (parted := plan.configuration.tensor_ranks) > 1:
        raise BadSpec(
            f"the plan parts layers over {parted} ranks (tensor parallelism), which a file for "
            f"{name} cannot say as it was planned: export fsdp2, a script that follows the plan, "
            "or plan with tensor_parallel=False"
        )
