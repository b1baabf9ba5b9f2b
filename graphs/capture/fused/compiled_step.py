"""A step as a compiler will run it: the graph to plan on, and what becomes of a schedule of it.

Knows how to ask the compiler. Knows nothing of budgets or solvers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture.fused.identity import written
from planner.graphs.capture.fused.kernel_graph import Price, graph_to_plan
from planner.graphs.capture.fused.rewritten import rewritten
from planner.graphs.capture.fused.stitched import Stitched, stitched
from planner.graphs.graph import Graph, Op
from planner.graphs.schedule import Schedule, plain_schedule
from planner.graphs.simulate import Trace, simulate
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, cut_by_tags
from planner.graphs.torch_api.inductor.scheduler import Kernels, kernels_of


@dataclass(frozen=True)
class CompiledStep:
    """A step that a compiler is to run, the graph of its kernels and what it holds beside them."""

    stitched: Stitched
    frame: Frame
    graph: Graph

    def halves(self, schedule: Schedule) -> Halves:
        """Return forward and backward as a schedule runs them, for the compiler.

        Args:
            schedule: of the graph.
        """
        return cut_by_tags(rewritten(self.stitched, self.graph, schedule))

    def asked(self, schedule: Schedule) -> Asked:
        """Ask the compiler what it will make of a schedule.

        Args:
            schedule: of the graph.
        """
        halves = self.halves(schedule)
        kernels = kernels_of(self.stitched.step, halves)
        return Asked(trace_of(really_run(self, *kernels)).peak_bytes, written(halves))


@dataclass(frozen=True)
class Asked:
    """The most that a compiler says it will hold, and what tells what it was asked for."""

    peak_bytes: int
    written: str


def compiled_step(step: JointStep, frame: Frame, price: Price) -> CompiledStep:
    """Ask the compiler for the kernels of a step, and make the graph to plan on of them.

    Args:
        step: as Inductor hands it over.
        frame: what it holds beside its kernels.
        price: what a kernel costs.
    """
    whole = stitched(step)
    kernels = kernels_of(whole.step, cut_by_tags(whole.step))
    return CompiledStep(whole, frame, graph_to_plan(whole, *kernels, frame, price))


def trace_of(graph: Graph) -> Trace:
    """Return what kernels cost and hold in the order they are in."""
    return simulate(graph, plain_schedule(graph))


def really_run(step: CompiledStep, first: Kernels, second: Kernels) -> Graph:
    """Return the graph of the kernels that a compiler makes of a step, in its order.

    Args:
        step: whose kernels they are: prices are taken from its graph.
        first, second: forward's and backward's.
    """
    count = step.stitched.step.forward_outputs
    given = _saved(first, count)
    price = {step.graph.values[v].name: op for op in step.graph.ops for v in op.outputs}
    outputs = [n for n in first.outputs[:count] if n is not None]
    gradients = [_renamed(n, given) for n in second.outputs if n is not None]
    return assemble(
        step.frame,
        _calls(first, None, price),
        _calls(second, given, price),
        list(dict.fromkeys(outputs)),
        list(dict.fromkeys(gradients)),
    )


def _saved(first: Kernels, count: int) -> dict[str, str]:
    """Return what each input of backward is in forward, by name: a buffer or an input of it."""
    pairs = zip(first.returned[count:], first.outputs[count:], strict=True)
    return {node: name for node, name in pairs if node is not None and name is not None}


def _renamed(name: str, given: dict[str, str]) -> str:
    """Tell the buffers of backward from forward's, which have the same names."""
    return given.get(name, f"{name}'" if name.startswith("buf") else name)


def _calls(
    half: Kernels, given: dict[str, str] | None, price: dict[str, Op]
) -> Sequence[KernelCall]:
    late = given is not None
    worst = max((op.workspace_bytes for op in price.values()), default=0)
    found = []
    for kernel in half.kernels:
        known = next((price[b.node] for b in kernel.makes if b.node in price), None)
        name = partial(_renamed, given=given) if given is not None else str
        found.append(
            KernelCall(
                f"{kernel.name}'" if late else kernel.name,
                known.target if known else "kernel",
                tuple(dict.fromkeys(name(n) for n in kernel.reads)),
                {name(b.name): b.size_bytes for b in kernel.makes},
                known.seconds if known else 0.0,
                workspace_bytes=_workspace(known, worst) if kernel.external else 0,
            )
        )
    return found


def _workspace(known: Op | None, worst_bytes: int) -> int:
    """Return what a kernel that is not fused takes beside: the most of any if it is not known."""
    return worst_bytes if known is None else known.workspace_bytes
