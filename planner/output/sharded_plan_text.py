"""The sharded plan as text: the answer first, then why, at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

from planner.byte_sizes import format_both, format_bytes, format_percent, format_seconds
from planner.graphs import Kind
from planner.output.device_notes import cluster_notes, reserve_note
from planner.output.layout import table, wrap
from planner.output.plan_text import binding_text, memory_table, recomputation, summary
from planner.output.tensor_parallel_text import degrees_text, tensor_notes, tensor_summary
from planner.plan.chunk_notes import described
from planner.plan.sharded_step_plan import Alternative, ShardedStepPlan
from planner.plan.time_parts import Spent, spent

ROWS = 14


def render(plan: ShardedStepPlan) -> str:
    """Write what a person wants to know about a plan, the answer first."""
    best_of_each = [row for row in families(plan.alternatives) if not row.recipe]
    sections = (
        answer(plan),
        time_table(plan),
        degrees_text(plan),
        units_text(plan),
        recomputation(plan.step),
        memory_table(plan.step),
        binding_text(plan.step),
        rejected("Rejected: the best of each way to shard", best_of_each[:ROWS]),
        recipes_text(plan),
        "\n".join(["Notes", *(wrap(note, "  - ", "    ") for note in notes(plan))]),
    )
    return "\n\n".join(section for section in sections if section)


def explain(plan: ShardedStepPlan) -> str:
    """Write the answer and every alternative with its peak, its time and its reason."""
    sections = (
        answer(plan),
        time_table(plan),
        degrees_text(plan),
        rejected("Rejected", [row for row in plan.alternatives if not row.recipe]),
        recipes_text(plan),
        "\n".join(["Notes", *(wrap(note, "  - ", "    ") for note in notes(plan))]),
    )
    return "\n\n".join(section for section in sections if section)


def answer(plan: ShardedStepPlan) -> str:
    """Say whether the plan fits, what it costs, how good it is and what it is."""
    samples = plan.configuration.global_batch
    verdict = "Fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"{verdict}: peak {format_both(plan.peak_bytes)} a rank of a "
        f"{format_both(plan.budget_bytes)} budget{_margin(plan)}, on {plan.cluster}",
        f"Time    {format_seconds(plan.seconds_per_sample)} a sample: "
        f"{samples} samples in {format_seconds(plan.seconds)}",
        f"Proven  at least {format_seconds(plan.bound_seconds_per_sample)} a sample is necessary, "
        f"however sharded: gap {format_percent(plan.gap)} of the plain step",
        f"Chosen  {chosen(plan)}",
        f"Status  {plan.status.value}",
    ]
    return "\n".join(wrap(line, "", " " * 8) for line in lines)


def _margin(plan: ShardedStepPlan) -> str:
    """Name what of the budget is kept free, if anything is."""
    if not plan.margin_bytes:
        return ""
    kept, nccl = plan.margin_bytes, plan.nccl_bytes
    return (
        f", {format_bytes(kept)} of which are kept free: {format_bytes(kept - nccl)} for the "
        f"allocator, {format_bytes(nccl)} for NCCL"
    )


def chosen(plan: ShardedStepPlan) -> str:
    """Name the stage and what else is decided."""
    c = plan.configuration
    parts = [f"stage {plan.stage}", *_groups(plan)]
    parts.append(f"micro-batch {c.micro_batch} x {c.accumulation} a step")
    parts.append("in the model's own precision" if c.precision == "float32" else c.precision)
    if c.offload:
        parts.append(f"{_offloaded(plan)} offloaded to the host")
    return ", ".join(parts)


def _offloaded(plan: ShardedStepPlan) -> str:
    """Say whose states are on the host."""
    c = plan.configuration
    if not c.staying:
        return "states"
    there = sum(c.on_host(unit.path) for unit in plan.units)
    named = [f"of {there} of {len(plan.units)} units"] if there else []
    named += ["of what is in no unit"] if c.on_host("") else []
    return f"states {' and '.join(named)}"


def _groups(plan: ShardedStepPlan) -> Iterator[str]:
    c = plan.configuration
    yield c.strategy.title
    if not c.spread.is_whole and c.replicas > 1:
        yield f"HSDP: {c.replicas} replicas, each over {c.shard_ranks} ranks"
    elif not c.spread.is_whole:
        yield f"sharded over {c.shard_ranks} ranks"
    if c.tensor_ranks > 1:
        along = " and the sequence between them" if c.sequence_parallel else ""
        yield f"layers{along} parted over {c.tensor_ranks} (tensor parallelism)"


def time_table(plan: ShardedStepPlan) -> str:
    """Show where the seconds of a step go."""
    parts = spent(plan.step.graph, plan.step.schedule)
    labels = {
        "compute": "forward and backward",
        "communication": "communication not hidden",
        "recomputation": "run or gathered again",
        "optimizer": "optimizer step",
    }
    rows = [
        (labels[f.name], format_seconds(s), format_percent(s / plan.seconds if plan.seconds else 0))
        for f in fields(Spent)
        if (s := getattr(parts, f.name)) or f.name != "optimizer"
    ]
    return f"Time of a step\n{table('lrr', ('part', 'seconds', 'share'), rows)}"


def units_text(plan: ShardedStepPlan) -> str:
    """List the units, consecutive ones with the same decision folded."""
    if not plan.units:
        return ""
    rows, on_host = [], plan.configuration.on_host
    for _, group in groupby(
        plan.units,
        key=lambda u: (u.kind, u.keep_gathered, u.row_wise, on_host(u.path), u.schedule),
    ):
        members = list(group)
        unit, graph = members[0], plan.kinds[members[0].kind].graph
        again = len(unit.schedule.order) - len(graph.ops) if graph.ops else 0
        span = unit.path if len(members) == 1 else f"{unit.path} ... {members[-1].path}"
        weight = plan.configuration.strategy.stage(keep_gathered=unit.keep_gathered).weight
        weight = "rows looked up where they are" if unit.row_wise else weight
        weight += ", states on the host" if on_host(unit.path) else ""
        rows.append((span, f"x{len(members)}", weight, f"{max(0, again):,} of {len(graph.ops):,}"))
    head, tail = rows[:ROWS], rows[ROWS:]
    if tail:
        head.append((f"{len(tail)} more rows", "", "", ""))
    header = ("units", "count", "weight", "ops run again")
    return f"Units\n{table('lrlr', header, head)}"


def recipes_text(plan: ShardedStepPlan) -> str:
    """Lay out what a stage for all units and per-block checkpointing would make of the choice."""
    rows = [row for row in plan.alternatives if row.recipe]
    return rejected("Rejected: fixed recipes with the same micro-batch and groups", rows)


def rejected(title: str, alternatives: Iterable[Alternative]) -> str:
    """Lay out alternatives with their peak, their time and their reason."""
    rows = [
        (
            row.recipe or str(row.configuration),
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            _time(row),
            row.reason,
        )
        for row in alternatives
    ]
    if not rows:
        return ""
    header = ("configuration", "peak", "a sample", "reason")
    lines = [_row(header), *map(_row, rows)]
    return "\n".join([title, *lines])


def _row(cells: tuple[str, ...]) -> str:
    name, peak, seconds, reason = cells
    return wrap(f"{name:44} {peak:>8} {seconds:>10}  {reason}", "  ", " " * 69)


def _time(row: Alternative) -> str:
    """Say what it takes; at most, if it may be less, and at least, if no plan of it is known."""
    if row.seconds_per_sample == float("inf"):
        return "no fit"
    mark = ">= " if not row.planned else "" if row.is_settled else "<= "
    return mark + format_seconds(row.seconds_per_sample)


def notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what the numbers rest on, one honest sentence each."""
    c = plan.configuration
    if plan.host_bytes:
        yield f"host memory: {format_both(plan.host_bytes)} on each node, for what is offloaded"
    else:
        yield "host memory: nothing is offloaded"
    yield from plan.step.remarks
    yield from described(plan.step.rewrite)
    yield from _table_notes(plan)
    yield from tensor_notes(plan)
    if plan.cluster.device.name == "cpu":
        kept = format_bytes(plan.reserve_bytes)
        yield f"reserve: {kept} a rank for what gloo's threads let go of late is counted"
    else:
        yield reserve_note(plan.cluster.device)
        yield from _allocator_notes(plan)
    yield (
        f"a peak above is of the best plan known, or the least if none fits; '<=' marks times of "
        f"plans that were not solved further, '>=' what is proved where no plan is known to fit; "
        f"all for {c.global_batch} samples a step"
    )
    if plan.step.optimizer is None:
        yield "the optimizer's state and step are left out of every number here"
    else:
        yield f"the step of the optimizer {plan.step.optimizer} is counted"
    yield (
        f"times are {plan.step.costs} estimates for {plan.cluster}; communication counts where "
        "compute does not hide it"
    )
    yield from cluster_notes(plan.cluster)
    if plan.root is not None:
        yield "what is around the units is planned, too: it takes micro-batches of this size alone"
    elif plan.kinds and all(kind.signature.get("dynamic") for kind in plan.kinds):
        yield "smaller micro-batches are served, too"
    if plan.step.message:
        yield f"solver: {plan.step.message}"


def _table_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say why tables of embeddings are not gathered, if some are not."""
    tables = [unit for unit in plan.units if unit.row_wise]
    if not tables:
        return
    names = ("look_up", "bring_back")
    sent = sum(op.moved_bytes for op in plan.step.graph.ops if op.target in names)
    graphs = [plan.kinds[unit.kind].graph for unit in tables]
    whole = sum(v.size_bytes for g in graphs for v in g.values if v.kind is Kind.PARAMETER)
    what = "1 table of embeddings is" if len(tables) == 1 else f"{len(tables)} tables are"
    yield (
        f"{what} not gathered: every rank keeps some rows and looks them up for all, so that "
        f"{format_bytes(sent)} of rows and gradients are exchanged in a micro-step; gathering and "
        f"reducing whole tables would move {format_bytes(2 * whole)}. All ranks have to call them "
        "with as many ids"
    )


def _allocator_notes(plan: ShardedStepPlan) -> Iterator[str]:
    """Say what beside the tensors has to find room on an accelerator, and who keeps it free."""
    if plan.margin_bytes:
        yield (
            "kept free: NCCL takes up to 1.5 GiB past PyTorch; the allocator needs 5% or what a "
            "replay of this schedule showed, where that is more; reserve= keeps another size free"
        )
        return
    free = plan.budget_bytes - plan.peak_bytes
    yield (
        f"kept free: nothing but {format_bytes(free)} ({format_percent(free / plan.budget_bytes)} "
        "of the budget), for NCCL, which takes up to 1.5 GiB, and for what the allocator needs "
        "beside the tensors, 5-20%"
    )


def sharded_summary(plan: ShardedStepPlan) -> dict[str, Any]:
    """Return the plan's answers as plain JSON types, for programs."""
    c = plan.configuration
    return summary(plan.step) | {
        "stage": plan.stage.to_json(),
        "strategy": c.strategy.name,
        "world_size": c.world_size,
        "shard_ranks": c.shard_ranks,
        "replicas": c.replicas,
        "micro_batch": c.micro_batch,
        "accumulation": c.accumulation,
        "precision": c.precision,
        "offload": c.offload,
        "staying": list(c.staying),
        "kept_gathered": plan.kept,
        "units": len(plan.units),
        "seconds_per_sample": plan.seconds_per_sample,
        "bound_seconds_per_sample": plan.bound_seconds_per_sample,
        "gap": plan.gap,
        "host_bytes": plan.host_bytes,
        "margin_bytes": plan.margin_bytes,
        "nccl_bytes": plan.nccl_bytes,
        "alternatives": [_alternative(row) for row in plan.alternatives],
        **tensor_summary(plan),
    }


def _alternative(row: Alternative) -> dict[str, Any]:
    fits_nowhere = row.seconds_per_sample == float("inf")
    return {
        "configuration": str(row.configuration),
        "recipe": row.recipe,
        "fits": row.fits,
        "peak_bytes": row.peak_bytes,
        "seconds_per_sample": None if fits_nowhere else row.seconds_per_sample,
        "planned": row.planned,
        "bound_seconds_per_sample": None if fits_nowhere else row.bound_seconds_per_sample,
        "reason": row.reason,
    }


def families(rows: Iterable[Alternative]) -> Iterator[Alternative]:
    """Yield the best row of each way to shard, the fastest first.

    That is the fastest plan known of it. If none is known to fit, it is what could be fastest.
    A way whose other configurations could be faster than its row is marked by its own bound.
    """
    groups: dict[object, list[Alternative]] = {}
    for row in rows:
        groups.setdefault((row.recipe, row.configuration.way), []).append(row)
    best = [_best(group) for group in groups.values()]
    yield from sorted(best, key=lambda row: row.seconds_per_sample)


def _best(group: list[Alternative]) -> Alternative:
    best = min(
        group, key=lambda row: (not row.planned, row.seconds_per_sample, row.peak_bytes or 0)
    )
    bounds = [row.bound_seconds_per_sample for row in group]
    known = [bound for bound in bounds if bound is not None]
    return replace(best, bound_seconds_per_sample=min(known)) if known else best
