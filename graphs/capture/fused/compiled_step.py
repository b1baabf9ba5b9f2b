"""A step as a compiler will run it: the graph to plan on, and what becomes of a schedule of it.

Knows how to ask the compiler. Knows nothing of budgets or solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import fx

from planner.graphs.capture.fused.around_kernels import Frame, KernelCall, assemble
from planner.graphs.capture.fused.closures import behind
from planner.graphs.capture.fused.identity import written
from planner.graphs.capture.fused.kernel_graph import Price, graph_to_plan
from planner.graphs.capture.fused.other_calls import OTHERS, Calls, with_others
from planner.graphs.capture.fused.prices import Workspace
from planner.graphs.capture.fused.rewritten import keep_products_apart, rewritten
from planner.graphs.capture.fused.stitched import Stitched, stitched
from planner.graphs.graph import Graph, Phase
from planner.graphs.schedule import Schedule, plain_schedule
from planner.graphs.simulate import simulate
from planner.graphs.torch_api.inductor.inductor_kernels import FusedKernel, Kernels
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, copy_of, cut_by_tags
from planner.graphs.torch_api.inductor.scheduler import kernels_of


@dataclass(frozen=True)
class Plain:
    """Forward and backward that repeat nothing, and their kernels."""

    halves: Halves
    kernels: tuple[Kernels, Kernels]


@dataclass(frozen=True)
class CompiledStep:
    """A step that a compiler is to run, the graph of its kernels and what it holds beside them.

    ``workspace`` is of kernels that are not fused; ``plain`` is what repeats nothing as
    the compiler makes it, if it was asked. ``own_way`` takes ``share=`` and ``checkpointed=``,
    as ``compiled_step`` does, and returns the step as torch itself cuts it then.
    """

    stitched: Stitched
    frame: Frame
    graph: Graph
    workspace: Workspace
    plain: Plain | None = None
    own_way: Callable[..., CompiledStep] | None = None

    @property
    def calls(self) -> Calls:
        """How many of the step wait for their backward passes at once."""
        return self.frame.calls

    def halves(self, schedule: Schedule) -> Halves:
        """Return forward and backward as a schedule runs them, for the compiler.

        Args:
            schedule: of the graph.
        """
        return cut_by_tags(self._joint(schedule))

    def asked(self, schedule: Schedule) -> Asked:
        """Ask the compiler what it will make of a schedule.

        Args:
            schedule: of the graph.
        """
        plain = self.plain if self._repeats_nothing(schedule) else None
        halves = self.halves(schedule) if plain is None else plain.halves
        kernels = kernels_of(self.stitched.step, halves) if plain is None else plain.kernels
        return Asked(held_bytes(self, *kernels), written(halves))

    def _joint(self, schedule: Schedule) -> JointStep:
        if self._repeats_nothing(schedule):
            return _plain(self.stitched)
        return rewritten(self.stitched, self.graph, schedule)

    def _repeats_nothing(self, schedule: Schedule) -> bool:
        return schedule.order == plain_schedule(self.graph).order


@dataclass(frozen=True)
class Asked:
    """The most that a compiler says it will hold, and what tells what it was asked for."""

    peak_bytes: int
    written: str


def compiled_step(
    step: JointStep,
    frame: Frame,
    price: Price,
    workspace: Workspace,
    *,
    share: float = 1.0,
    checkpointed: Mapping[str, int] | None = None,
) -> CompiledStep:
    """Ask the compiler for the kernels of a step, and make the graph to plan on of them.

    Args:
        step: as Inductor hands it over.
        frame: what it holds beside its kernels.
        price: what a kernel costs.
        workspace: what one that is not fused takes beside.
        share: torch's own ``activation_memory_budget``.
        checkpointed: which nodes torch's own checkpoints are around, as for ``cut_by_torch``.
    """
    whole = stitched(step, share, checkpointed)
    halves = cut_by_tags(_plain(whole))
    plain = Plain(halves, kernels_of(whole.step, halves))
    ordered = share == 1.0 and checkpointed is None  # otherwise nothing is planned of it
    graph = graph_to_plan(whole, *plain.kernels, frame, price, ordered=ordered)
    again = partial(compiled_step, step, frame, price, workspace)
    return CompiledStep(whole, frame, graph, workspace, plain, again)


def _plain(step: Stitched) -> JointStep:
    """Return the step as it is when nothing but torch's free copies is repeated."""
    module = copy_of(step.step.module)
    keep_products_apart(module.graph)
    return step.step.of(module)


@dataclass(frozen=True)
class Ends:
    """The names of what a step returns, and of the gradients of its placeholders, in order.

    ``None`` stands for what is no tensor, and for a gradient that there is not.
    """

    outputs: tuple[str | None, ...]
    gradients: tuple[str | None, ...]


def ends_of(step: CompiledStep) -> Ends:
    """Return the values of a step's graph that are, or lie under, what it returns.

    Args:
        step: whose graph has values named after its nodes.
    """
    names = {v.name for v in step.graph.values}
    stored = {n for n in step.stitched.graph.nodes if n.name in names}

    def under(node: fx.Node | None) -> str | None:
        if node is None or node in stored or node.op == "placeholder":
            return None if node is None else node.name
        return next(iter(behind([node], stored)[1])).name

    count = step.stitched.step.forward_outputs
    made = tuple(map(under, step.stitched.outputs))
    return Ends(made[:count], made[count:])


def ends_of_code(step: CompiledStep, first: Kernels, second: Kernels) -> Ends:
    """Return the values of ``really_run`` that a step returns.

    Args:
        step, first, second: as for ``really_run``.
    """
    given = _given(step, first, second)
    gradients = (None if n is None else _renamed(n, given) for n in second.outputs)
    return Ends(first.outputs[: step.stitched.step.forward_outputs], tuple(gradients))


def held_bytes(step: CompiledStep, first: Kernels, second: Kernels) -> int:
    """Return the most that a compiler's code of a step holds, other calls of it included.

    Args:
        step: whose code it is.
        first, second: forward's and backward's.
    """
    code = really_run(step, first, second)
    schedule = plain_schedule(code)
    return simulate(with_others(code, schedule, step.frame.calls), schedule).peak_bytes


def really_run(step: CompiledStep, first: Kernels, second: Kernels) -> Graph:
    """Return the graph of what a compiler's code of a step holds, line by line.

    Args:
        step: whose code it is.
        first, second: forward's and backward's.
    """
    ends, given = ends_of_code(step, first, second), _given(step, first, second)
    outputs = list(dict.fromkeys(n for n in ends.outputs if n is not None))
    gradients = list(dict.fromkeys(n for n in ends.gradients if n is not None))
    saved = set(_saved(first, step.stitched.step.forward_outputs).values())
    workspace = _workspaces(step)
    return assemble(
        step.frame,
        _lines(first, {}, saved | set(outputs), workspace),
        _lines(second, given, set(gradients), workspace),
        outputs,
        gradients,
    )


def _given(step: CompiledStep, first: Kernels, second: Kernels) -> dict[str, str]:
    """Return what each input of backward is in forward, or of the gradients that arrive."""
    saved = _saved(first, step.stitched.step.forward_outputs)
    known = saved.keys() | step.frame.tangents.keys()  # what is no tensor is not
    return {n: saved.get(n, n) for n in second.inputs if n in known}


def _saved(first: Kernels, count: int) -> dict[str, str]:
    """Return what each input of backward is in forward, by name: a buffer or an input of it."""
    pairs = zip(first.returned[count:], first.outputs[count:], strict=True)
    return {node: name for node, name in pairs if node is not None and name is not None}


def _renamed(name: str, given: Mapping[str, str]) -> str:
    """Tell the buffers of backward from forward's, which have the same names."""
    return given.get(name, f"{name}'")


def _lines(
    half: Kernels,
    given: Mapping[str, str],
    kept: set[str],
    workspace: Callable[[FusedKernel | None], int],
) -> list[KernelCall]:
    """Return each line as an op; a last one gives back what the code never does.

    Args:
        half: forward's or backward's.
        given: what the inputs of backward are in forward.
        kept: what is not given back when the half ends.
        workspace: of a kernel that is not fused.
    """
    name = partial(_renamed, given=given) if given else str
    makers = {b.name: k for k in half.kernels for b in k.makes}
    found: list[KernelCall] = []
    held, made = dict.fromkeys(given.values()), set[str]()
    for line in half.code:
        gives = tuple(name(n) for n in line.gives if not given or n in given or n in made)
        takes = {name(n): size for n, size in line.takes}
        made |= {n for n, _ in line.takes}
        held = {n: None for n in (*held, *takes) if n not in gives}
        beside = workspace(makers.get(line.calls)) if line.calls is not None else 0
        text = f"{'backward' if given else 'forward'}.{len(found)}"
        found.append(KernelCall(text, "line", gives, takes, workspace_bytes=beside))
    rest = tuple(n for n in held if n not in kept)
    return [*found, KernelCall(f"{'backward' if given else 'forward'}.end", "line", rest, {})]


def _workspaces(step: CompiledStep) -> Callable[[FusedKernel | None], int]:
    """Return what tells a kernel's workspace: the most of any for one that is not known."""
    by_name = {n.name: n for n in step.stitched.graph.nodes}
    stored = {by_name[v.name] for v in step.graph.values if v.name in by_name}
    ops = (op for op in step.graph.ops if op.phase is not Phase.OPTIMIZER)
    kernels = (op for op in ops if op.target != OTHERS)
    worst = max((op.workspace_bytes for op in kernels), default=0)

    def workspace(kernel: FusedKernel | None) -> int:
        made = kernel.makes if kernel is not None else ()
        nodes = [by_name[b.node] for b in made if b.node in by_name]
        if kernel is None or not nodes:
            return worst
        return step.workspace([*nodes, *behind(nodes, stored)[0]], kernel)

    return workspace
