"""The plan as text: the answer first, the explanation after, at most 100 columns.

Knows how to lay out what a plan says. Computes nothing about schedules and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.byte_sizes import format_both, format_bytes, format_percent, format_seconds
from planner.graphs import Kind, Live, Phase, phase_peaks
from planner.graphs.allocation import Needs, kept_bytes
from planner.graphs.binding import Binding, largest_live
from planner.graphs.hardware.allocators import SEGMENTS
from planner.graphs.hardware.devices import device, in_table
from planner.graphs.served_sizes import served
from planner.output.device_notes import device_notes, reserve_note
from planner.output.folding import fold
from planner.output.layout import table, wrap
from planner.output.moved_text import host_note, moved_summary, moved_text
from planner.plan.chunk_notes import described
from planner.plan.step_plan import StepPlan
from planner.solvers import Status

SCALAR_BYTES = 512  # what an allocator gives for a single number at most
ROWS = 12  # of the longest tables; what is left out is added up in one more row
LIVE = 6
LONG = 40  # rows of the values held, where somebody asks why


def render(plan: StepPlan) -> str:
    """Write everything a person wants to know about a plan, the answer first."""
    sections = (
        answer(plan),
        recomputation(plan),
        moved_text(plan, ROWS),
        memory_table(plan),
        binding_text(plan),
        notes_text(plan),
    )
    return "\n\n".join(section for section in sections if section)


def explain(plan: StepPlan) -> str:
    """Write the answer, and in full what runs again and what is held where the plan holds most."""
    sections = (
        answer(plan),
        recomputation(plan, rows=len(plan.recomputed)),
        moved_text(plan, len(plan.schedule.steps)),
        memory_table(plan),
        binding_text(plan, rows=LONG),
        notes_text(plan),
    )
    return "\n\n".join(section for section in sections if section)


def notes_text(plan: StepPlan) -> str:
    """Lay the notes out."""
    return "\n".join(["Notes", *(wrap(note, "  - ", "    ") for note in notes(plan))])


def answer(plan: StepPlan) -> str:
    """Say whether the plan fits, what it costs, how good it is, and what it does not count."""
    verdict = "Fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"{verdict}: peak {format_both(plan.peak_bytes)} of a {format_both(plan.budget_bytes)} "
        "budget",
        f"Plain   peak {format_both(plan.eager_peak_bytes or plan.plain_peak_bytes)}, "
        f"step {format_seconds(plan.plain_seconds)}",
        f"Time    +{format_percent(plan.overhead)} of the plain step, "
        f"step {format_seconds(plan.seconds)}",
        f"Proven  at least +{format_percent(plan.bound_overhead)} is necessary: "
        f"gap {format_percent(plan.gap)} of the plain step",
        f"Status  {_status(plan)}, by {plan.method}",
        wrap(f"not counted: {', '.join(not_counted(plan))}", "Beyond  ", " " * 8),
    ]
    if plan.needs is not None:
        lines.insert(1, wrap(_needs(plan, plan.needs), "Device  ", " " * 8))
    return "\n".join(lines)


def _needs(plan: StepPlan, found: Needs) -> str:
    """Say what the allocator makes of the tensors' peak, and what another setting would."""
    tensors_bytes = plan.peak_bytes - kept_bytes(plan.graph)
    lost = (found.needed_bytes - plan.peak_bytes) / max(1, tensors_bytes)
    text = (
        f"needs {format_both(found.needed_bytes)} for them, {format_percent(lost)} more than they "
        f"take, through the {plan.allocator} of its allocator, which reserves up to "
        f"{format_bytes(found.reserved_bytes)} if there is more"
    )
    if plan.allocator == SEGMENTS:
        other = plan.needs_with(expandable=True)
        if other.needed_bytes < found.needed_bytes:
            text += (
                f"; {format_bytes(other.needed_bytes)} with "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
            )
    worst = plan.needed_bytes_at_sizes
    if worst is not None and worst > plan.budget_bytes:
        text += f"; {format_bytes(worst)}, too much, if smaller calls come before the largest"
    return text


def not_counted(plan: StepPlan) -> Iterator[str]:
    """Yield what a loop may hold that no number of the plan knows of."""
    if plan.optimizer is None:
        yield "the optimizer"
    sizes = {plan.graph.values[v].size_bytes for op in plan.graph.ops
             if op.target == "tangent" for v in op.outputs}  # fmt: skip
    if max(sizes, default=0) > SCALAR_BYTES:
        yield "a loss outside the model"
    yield "a second call before backward"
    if not plan.signature.get("accumulate"):
        yield "gradients kept from an earlier backward"


def _status(plan: StepPlan) -> str:
    if plan.status is not Status.OPTIMAL:
        said = str(plan.status.value)
    elif plan.schedule.moves:
        said = "optimal, within the gap above, among all that keep, recompute or move values"
    elif plan.states is not None:
        said = "optimal, within the gap above, among shares of the optimizer's states on the host"
        if plan.schedule.is_plain:
            said += ": beside them nothing needs to be recomputed or moved"
    elif not plan.schedule.is_plain:
        order = "any order" if plan.reordered else "the captured order"
        said = f"optimal, within the gap above, for {order} of first computations"
    else:
        said = "optimal: nothing needs to be recomputed"
    return f"{said}; ops were reordered" if plan.reordered else said


def recomputation(plan: StepPlan, *, rows: int = ROWS) -> str:
    """Tell which ops run again, identical layers folded."""
    if not plan.recomputed:
        return "Recomputed: nothing"
    folds = fold(plan.graph, plan.recomputed)
    head, tail = folds[:rows], folds[rows:]
    cells = [
        (
            f.modules or "(no module)",
            f.target,
            f"x{f.count}",
            *_cost(f.saved_bytes, f.extra_seconds),
        )
        for f in head
    ]
    if tail:
        left = sum(f.saved_bytes for f in tail), sum(f.extra_seconds for f in tail)
        cells.append(
            (f"{len(tail)} more rows", "", f"x{sum(f.count for f in tail)}", *_cost(*left))
        )
    saved = format_bytes(sum(r.saved_bytes for r in plan.recomputed))
    title = (
        f"Recomputed: {len(plan.recomputed):,} of {len(plan.graph.ops):,} ops run again, "
        f"{saved} not held"
    )
    header = ("module", "operator", "runs", "not held", "time added")
    return f"{title}\n{table('llrrr', header, cells)}"


def _cost(saved_bytes: int, seconds: float) -> tuple[str, str]:
    return format_bytes(saved_bytes), format_seconds(seconds)


def memory_table(plan: StepPlan) -> str:
    """Show bytes by category and phase, each phase at the step where it holds most."""
    phases = [p for p in Phase if p in plan.memory]
    rows = [
        (kind.value, *(format_bytes(plan.memory[p].get(kind, 0)) for p in phases))
        for kind in Kind
        if any(kind in plan.memory[p] for p in phases)
    ]
    rows.append(("total", *(format_bytes(sum(plan.memory[p].values())) for p in phases)))
    plain = phase_peaks(plan.graph, plan.plain, plan.plain_trace)
    held = plan.plain_trace.live_bytes
    of = "plain total" if plan.states is None else "plain, states moved"
    rows.append((of, *(format_bytes(int(held[plain[p]])) for p in phases)))
    header = ("category", *(p.value for p in phases))
    return f"Memory when each phase holds most\n{table('l' + 'r' * len(phases), header, rows)}"


def binding_text(plan: StepPlan, *, rows: int = LIVE) -> str:
    """Name the op at the peak and the largest values an op made that are held there."""
    found = plan.binding
    share = format_bytes(found.category_bytes)
    lines = [
        "What binds",
        wrap(str(found), "  ", "  "),
        f"  at step {found.step + 1:,} of {len(plan.schedule.steps):,}; "
        f"{share} of {format_bytes(found.peak_bytes)} there is {found.category.value}",
    ]
    live = largest_live(plan.graph, plan.schedule, found.step, rows)
    cells = [_live_row(item) for item in live]
    header = ("largest values made", "bytes", "module", "source")
    return "\n".join([*lines, table("lrll", header, cells)] if cells else lines)


def _live_row(item: Live) -> tuple[str, ...]:
    assert item.op is not None  # largest_live lists what an op made
    size = format_bytes(item.value.size_bytes)
    return item.value.name, size, item.op.module, item.op.source


def _of_one_rank(plan: StepPlan) -> Iterator[str]:
    """Say of a parallelized model whose step this is, and what its communication takes."""
    if not (mesh := plan.signature.get("mesh")):
        return
    ops, ranks = plan.graph.ops, " x ".join(map(str, mesh))
    sent = [i for i in plan.schedule.order if ops[i].phase is Phase.COMMUNICATION]
    seconds = sum(ops[i].seconds for i in sent)
    yield (
        f"the step of one rank of a model parallelized over {ranks}, all of which run this plan; "
        f"{len(sent)} collectives of {format_seconds(seconds)} together are in its time, none "
        "hidden behind compute"
    )


def _of_experts(plan: StepPlan) -> Iterator[str]:
    """Say what was assumed of a router that decides how many rows are sent."""
    if plan.capacity_factor is None:
        return
    layers = sum(op.target.partition("+")[0] == EXPERTS for op in plan.graph.ops)
    yield (
        f"tokens are sent to experts of other ranks in {layers} layers: memory is for "
        f"{plan.capacity_factor:g} times the even share of rows on each rank (capacity_factor), "
        "and a step in which more arrive raises CapacityExceeded on all ranks; times are for the "
        "even share"
    )
    yield (
        "what is sent and computed for such a layer is not kept for its backward pass, which does "
        "it again, in the plain step of these numbers, too"
    )


def _kernels(plan: StepPlan) -> Iterator[str]:
    """Say what was assumed of a card where it was not asked."""
    kernels, host = plan.signature.get("kernels"), (plan.signature.get("autocast") or [None])[0]
    if kernels is None or kernels == host:
        return
    hardware = plan.hardware or (device(plan.device) if in_table(plan.device) else None)
    card = (hardware.architecture if hardware else None) or "sm_80, as nothing is known"
    text = (
        f"kernels, autocast and optimizer are those of CUDA on {card}, by torch's rules; no card "
        "was asked, and where it runs others the plan is made anew when it is applied"
    )
    assumed = "; attention: cuDNN after 9.15, as wheels for CUDA 13 have it"
    yield text + assumed * card.startswith(("sm_90", "sm_10"))
    if any(op.target == "aten._cudnn_rnn.default" for op in plan.graph.ops):
        yield (
            "what cuDNN keeps of recurrent layers for their backward pass is assumed (gates and "
            "states of each step); only a card tells"
        )
    if any(op.target in _BATCH_NORMS_OF_CUDNN for op in plan.graph.ops):
        yield (
            "batch norm is cuDNN's where torch has it so; that cuDNN keeps nothing of batch norm "
            "for the backward pass is assumed, and only a card tells"
        )


EXPERTS = "remat_planner.expert_exchange.default"
"""What graphs call a layer of experts that tokens are sent to."""

_BATCH_NORMS_OF_CUDNN = frozenset(
    ("aten._batch_norm_with_update_functional.default", "aten.cudnn_batch_norm.default")
)


def notes(plan: StepPlan) -> Iterator[str]:
    """Say what the numbers rest on, one honest sentence each."""
    model = plan.signature.get("model")
    if model:
        inputs = plan.signature.get("inputs")
        yield f"made for {model}" + (f" with {_inputs(inputs)}" if inputs else "")
    yield from _of_one_rank(plan)
    yield from _of_experts(plan)
    yield from _kernels(plan)
    yield from described(plan.rewrite)
    if limits := served(plan.signature):
        yield f"every smaller call is served, too: {limits}"
    if checked := plan.signature.get("checked"):
        where = ", ".join(checked[:3]) + ", ..." * (len(checked) > 3)
        yield f"checks of the model at {where} are made after each call, or with checks='drop' not"
    elif plan.signature.get("checks") == "drop":
        yield "checks that the model's code makes in order to raise or log are left out"
    if plan.optimizer is None:
        yield "the optimizer's state and step are left out of every number here"
    else:
        yield f"the step of the optimizer {plan.optimizer}, its state and temporaries are counted"
    yield "workspace of kernels and of the optimizer step counts as activation"
    if plan.costs == "measured":
        yield f"times were measured op by op on {plan.device}"
    else:
        yield f"times are {plan.costs} estimates for {plan.device}; costs='measured' times real ops"
    yield from _of_device(plan)
    peak = plan.binding
    if peak.phase is Phase.OPTIMIZER:
        yield "the peak is in the optimizer step, where recomputing layers cannot lower it"
    elif peak.source and not peak.module:
        yield (
            f"the peak is outside every submodule, at {peak.source} (often the "
            "loss): recomputing layers cannot lower what that line itself holds"
        )
    if plan.message:
        yield f"solver: {plan.message}"
    yield from host_note(plan)
    yield from plan.remarks


def _of_device(plan: StepPlan) -> Iterator[str]:
    yield from device_notes(plan.device)
    if plan.allocator is not None and plan.hardware is not None and plan.hardware.reserve_bytes:
        yield reserve_note(plan.hardware)


def _inputs(inputs: Any) -> str:
    return ", ".join(map(str, inputs)) if isinstance(inputs, list) else str(inputs)


def summary(plan: StepPlan) -> dict[str, Any]:
    """Return the plan's answers as plain JSON types, for programs."""
    return {
        "fits": plan.fits,
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "plain_peak_bytes": plan.plain_peak_bytes,
        "eager_peak_bytes": plan.eager_peak_bytes,
        "baseline_peak_bytes": plan.plain_peak_bytes,  # until 0.3: the name before
        "seconds": plan.seconds,
        "plain_seconds": plan.plain_seconds,
        "baseline_seconds": plan.plain_seconds,  # until 0.3: the name before
        "bound_seconds": plan.bound_seconds,
        "overhead": plan.overhead,
        "bound_overhead": plan.bound_overhead,
        "gap": plan.gap,
        "status": plan.status.name,
        "reordered": plan.reordered,
        "method": plan.method,
        "stage": plan.stage.to_json(),
        "device": plan.device,
        "optimizer": plan.optimizer,
        "costs": plan.costs,
        "engine": plan.engine,
        "rewrite": plan.rewrite,
        "memory_model": plan.memory_model,
        "allocator": plan.allocator,
        "needed_bytes": plan.needs.needed_bytes if plan.needs else plan.peak_bytes,
        "ops": len(plan.graph.ops),
        "recomputed_ops": len(plan.recomputed),
        "memory": {
            phase.value: {kind.value: size for kind, size in sizes.items()}
            for phase, sizes in plan.memory.items()
        },
        "binding": binding_summary(plan.binding),
        "signature": dict(plan.signature),
        **moved_summary(plan),
        "capture_seconds": plan.capture_seconds,
        "solve_seconds": plan.solve_seconds,
        "message": plan.message,
    }


def binding_summary(found: Binding) -> dict[str, Any]:
    """Return what binds as plain JSON types, for programs."""
    return {
        "op": found.op,
        "module": found.module,
        "source": found.source,
        "phase": found.phase.value,
        "category": found.category.value,
        "category_bytes": found.category_bytes,
    }
