"""The door for those who compile: ``torch.compile(model, backend=planner.backend("40GB"))``.

Every training step that Dynamo traces is planned where Inductor cuts it, within one budget. Knows
what a backend sees of a step, and what it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from planner.byte_sizes import format_both
from planner.errors import BadRequest, CaptureError, InfeasibleBudget
from planner.graphs import simulate
from planner.graphs.hardware.devices import DeviceSpec
from planner.loss_chunks import KEEP, check_chunks
from planner.plan.step_plan import StepPlan
from planner.planning import plan_captured, plan_variants
from planner.plans import Plan
from planner.progress import PlannerWarning, Told
from planner.request import Request, requested, takes
from planner.solvers import Limits
from planner.step_options import check_said
from planner.step_variants import AS_CAPTURED, least_in_chunks

if TYPE_CHECKING:
    from torch import fx

    from planner.graphs.capture.fused.compiled_step import CompiledStep
    from planner.graphs.capture.fused.other_calls import Calls
    from planner.graphs.capture.training_step import Captured
    from planner.graphs.torch_api.inductor.handed_graphs import HandedGraph
    from planner.graphs.torch_api.inductor.inductor_kernels import Kernels
    from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep


class BackendOptions(TypedDict, total=False):
    """What may be said to a backend; ``Request`` says what each means."""

    optimizer: Any
    device: DeviceSpec
    costs: str
    limits: Limits
    progress: Told
    reserve: str | float | None
    allocator: str
    method: str
    accumulate: bool
    loss_chunks: int | str


NOT_SAID = frozenset({"loss", "engine"})
LAST = (
    "torch compiles no more sizes or modes of this step (torch._dynamo.config.recompile_limit), "
    "and runs others without a plan: raise that limit, or pad batches to fewer sizes"
)
CHANGES = (
    "{} changes from call to call, and each value of it is compiled and planned by itself: hand it "
    "over as a tensor, or keep it in one (register_buffer), or out of forward"
)


@takes(BackendOptions)
def backend(
    budget: str | float,
    *,
    plans: Sequence[StepPlan] = (),
    calls: int = 1,
    **said: Unpack[BackendOptions],
) -> PlanningBackend:
    """Return a backend of ``torch.compile`` that plans each training step within a budget.

    The budget covers everything on the device, as with ``fit``. A backend sees the step that it is
    given: the state of ``optimizer`` is counted for the parameters in it (AdamW's unless something
    else is said), gradients kept from earlier steps with ``accumulate=True``; for whatever else
    lives on the device, leave room with ``reserve``: nothing by default.

    Args:
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        plans: made before, such as by another process: carried out where they are for the very
            step and within the budget.
        calls: how many calls of what is compiled wait for their backward passes at once, where a
            block is compiled by itself and a model has several, one after the other: the budget
            is for all of them, each with parameters of its own.
        said: ``optimizer``, ``device``, ``reserve``, ``costs``, ``method``, ``limits``,
            ``progress``, ``accumulate``, ``loss_chunks``, as for ``fit``.

    Raises:
        BadRequest, UnknownMethod: something is not what it should be.

    >>> planner_backend = backend("1GB", optimizer="sgd")
    >>> planner_backend.plans
    ()
    """
    return PlanningBackend(budget, dict(said), plans, calls)


class PlanningBackend:
    """A backend of ``torch.compile``; ``plans`` are those carried out so far, in order.

    A recompilation (another size, another mode) is planned anew within the same budget. A graph
    break, and a second step beside the first, are refused: each would take the budget for itself.
    """

    def __init__(
        self,
        budget: str | float,
        said: dict[str, Any],
        plans: Sequence[StepPlan] = (),
        calls: int = 1,
    ) -> None:
        if refused := sorted(NOT_SAID & said.keys()):
            raise BadRequest(
                f"{refused[0]}= cannot be said to a backend: it sees what torch.compile is given, "
                "and runs Inductor's kernels"
            )
        check_said(said, BackendOptions)
        check_chunks(said.get("loss_chunks", 1), KEEP, (AS_CAPTURED,))
        from planner.running.live_calls import LiveCalls

        if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
            raise BadRequest(f"calls= is {calls!r}; expected how many wait at once, such as 12")
        self._budget, self._said, self._known = budget, said, _checked(plans)
        self._count, self._live = calls, LiveCalls(calls)
        self._plans: list[Plan] = []
        self._frame: int | None = None
        self._sizes = dict[str, int]()
        self._calls = set[tuple[str, ...]]()
        self._beyond: tuple[Captured, Request] | None = None

    def __repr__(self) -> str:
        """Name it as it was made, in torch's errors, too."""
        return f"planner.backend({self._budget!r})"

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of every training step that was compiled, the first one first."""
        return tuple(self._plans)

    def __call__(
        self, gm: fx.GraphModule, example_inputs: list[Any], **options: Any
    ) -> Callable[..., Any]:
        """Compile a graph; Dynamo calls this.

        Raises:
            CaptureError: a training step in more than one graph.
            InfeasibleBudget: no schedule found fits.
        """
        from planner.graphs.torch_api.inductor.compiler import compiled_graph
        from planner.graphs.torch_api.inductor.handed_graphs import traced
        from planner.graphs.torch_api.inductor.partitioner import Partitioner
        from planner.running.compiled_model import variant_of, within

        if options:
            raise BadRequest(
                f"torch.compile hands {sorted(options)} to the backend, which takes what is to be "
                "said itself: planner.backend(budget, ...)"
            )
        graph = traced(gm, example_inputs, self._sizes)
        rewrite = self._rewrite(graph)
        known: list[tuple[Plan, CompiledStep]] = []

        def cut(step: JointStep) -> Halves:
            plan, compiled = self._cut(graph, variant_of(step, rewrite))
            known.append((plan, compiled))
            return compiled.halves(plan.schedule)

        def check(first: Kernels, second: Kernels) -> None:
            plan, compiled = known[-1]
            within(compiled, first, second, plan.budget_bytes)

        try:
            keep = rewrite != AS_CAPTURED
            return self._live.watched(
                compiled_graph(graph, Partitioner(cut, graph.largest), check, keep=keep)
            )
        except InfeasibleBudget as error:
            if self._beyond is None:
                raise
            raise error.with_more(least_in_chunks(error.least_bytes, *self._beyond)) from error

    def _said_of(self, graph: HandedGraph) -> dict[str, Any]:
        said: dict[str, Any] = {"dynamic": "off", **self._said, "engine": "inductor"}
        return {"device": _device_of(graph), **said, "inputs": graph.examples}

    def _rewrite(self, graph: HandedGraph) -> str:
        """Return which variant of a training step is to be compiled; where a plan chooses it, that
        plan is made before.
        """
        from planner.graphs.capture.fused.in_chunks import in_chunks
        from planner.graphs.capture.rewrites import Declined
        from planner.graphs.torch_api.inductor.compiler import handed_step

        chosen = self._said.get("loss_chunks", 1) != 1
        made = {p.rewrite: p for p in (*self._plans, *self._known) if p.rewrite != AS_CAPTURED}
        if not (chosen or made) or (step := handed_step(graph, keep=True)) is None:
            return AS_CAPTURED
        self._refuse_second(graph)
        with requested(graph.module, self._said_of(graph)) as request:
            budget_bytes = request.budget_bytes(self._budget)
            for name in made:
                with suppress(Declined):
                    if self._known_for(graph, in_chunks(step, name), budget_bytes):
                        return name
            if not chosen:
                return AS_CAPTURED
            plan = plan_variants(self._variants(graph, request), request, budget_bytes)
            self._known = (*self._known, _noted(plan, request))
        return plan.rewrite

    def _variants(self, graph: HandedGraph, request: Request) -> Callable[..., Captured]:
        from planner.graphs.capture.call_arguments import arguments
        from planner.graphs.torch_api.inductor.compiler import handed_step
        from planner.running.engines.compiled_capture import captured_joint, variants_of

        def captured_one(step: JointStep, name: str) -> Captured:
            call = arguments(list(graph.examples), {})
            return captured_joint(
                step,
                graph.module,
                call,
                request,
                step.trained,
                rewrite=name,
                calls=self._calls_beside(),
            )

        def traced(*, keep: bool) -> JointStep:
            step = handed_step(graph, keep=keep)
            assert step is not None, "it trains"
            return step

        return variants_of(traced, captured_one)

    def _cut(self, graph: HandedGraph, step: JointStep) -> tuple[Plan, CompiledStep]:
        self._refuse_second(graph)
        with requested(graph.module, self._said_of(graph)) as request:
            found = self._known_for(graph, step, request.budget_bytes(self._budget))
            plan, compiled = found or self._planned(graph, step, request)
            request.tell(repr(plan))
        self._frame = graph.frame
        if not any(plan is known for known in self._plans):
            self._plans.append(plan)
        self._warn(graph, compiled)
        return plan, compiled

    def _warn(self, graph: HandedGraph, compiled: CompiledStep) -> None:
        """Say what compiles a step again and again, and when torch ends that."""
        from planner.graphs.capture.fused.identity import call_of
        from planner.running.compiled_model import AGAIN

        call = (*call_of(compiled.stitched), *map(str, graph.called))
        if graph.changing:
            warnings.warn(CHANGES.format(graph.changing[0]), PlannerWarning, stacklevel=2)
        elif call in self._calls:
            warnings.warn(AGAIN.format("the step"), PlannerWarning, stacklevel=2)
        if graph.last:
            warnings.warn(LAST, PlannerWarning, stacklevel=2)
        self._calls.add(call)

    def _known_for(
        self, graph: HandedGraph, step: JointStep, budget_bytes: int
    ) -> tuple[Plan, CompiledStep] | None:
        """Return a plan made before, here or elsewhere, for the very step, if it is within the
        budget.
        """
        from planner.graphs.capture.fused.identity import calls_of, identity
        from planner.graphs.capture.fused.other_calls import together
        from planner.graphs.capture.fused.stitched import stitched
        from planner.running.compiled_model import step_under
        from planner.running.engines.kept_promise import as_said

        made = (*self._plans, *self._known)
        plans = [plan for plan in made if calls_of(plan.signature) == self._count]
        if not plans:
            return None
        whole = stitched(step)
        same, calls = identity(whole, self._count).items(), self._calls_beside()
        for plan in plans:
            own, said = as_said(plan.graph, plan.peak_bytes)
            held = plan.peak_bytes - said + together(own, said, calls)
            if same <= plan.signature["compiled"].items() and held <= budget_bytes:
                found = plan if isinstance(plan, Plan) else Plan.of(plan)
                return found, step_under(plan, whole, graph.module)
        return None

    def _planned(
        self, graph: HandedGraph, step: JointStep, request: Request
    ) -> tuple[Plan, CompiledStep]:
        from planner.graphs.capture.call_arguments import arguments
        from planner.running.engines.compiled_capture import captured_joint

        call = arguments(list(graph.examples), {})
        calls = self._calls_beside()
        captured = captured_joint(step, graph.module, call, request, step.trained, calls=calls)
        try:
            plan = plan_captured(captured, request, request.budget_bytes(self._budget))
        except InfeasibleBudget:
            variants = self._variants(graph, request)
            self._beyond = replace(captured, variant=variants), request
            raise
        assert captured.compiled is not None, "it is a compiler's"
        return _noted(plan, request), replace(captured.compiled, graph=plan.graph)

    def _calls_beside(self) -> Calls:
        """Return how many calls wait at once, and what those of earlier plans hold."""
        from planner.graphs.capture.fused.other_calls import Calls, after
        from planner.running.engines.kept_promise import as_said

        count = Calls(self._count)
        found = [after(*as_said(p.graph, p.peak_bytes), count) for p in self._plans]
        return Calls(
            self._count,
            max((c.waiting_bytes for c in found), default=0),
            max((c.burst_bytes for c in found), default=0),
            max((c.resident_bytes for c in found), default=0),
        )

    def _refuse_second(self, graph: HandedGraph) -> None:
        if graph.breaks is not None:
            raise CaptureError(
                f"the training step breaks at {graph.breaks}; each part would take the budget for "
                "itself: change that line so that torch.compile(..., fullgraph=True) takes the "
                "step whole, or plan for eager kernels with planner.fit"
            )
        if self._plans and graph.frame != self._frame:
            raise CaptureError(
                "a second training step is compiled beside the first, which has the whole budget; "
                "compile the model as one, or give each a backend with a budget of its own (blocks "
                "of one class are one step: calls= says how many there are)"
            )


def _noted(plan: StepPlan, request: Request) -> Plan:
    from planner.graphs.capture.fused.identity import calls_of
    from planner.graphs.capture.fused.other_calls import Calls, with_others

    if (count := calls_of(plan.signature)) > 1:
        whole = simulate(with_others(plan.graph, plan.plain, Calls(count)), plan.plain)
        plan = plan.with_remark(
            f"one call of {count} that wait for their backward passes at once: what the others "
            "hold, and their parameters, gradients and states, is counted in its peak; if none "
            f"repeated anything they would hold {format_both(whole.peak_bytes)} together"
        )
    left = format_both(request.hardware.reserve_bytes)
    counted = plan.optimizer or "no optimizer"
    return Plan.of(
        plan.with_remark(
            f"planned inside torch.compile: {counted} is counted for the parameters of this "
            f"graph, {left} are left to whatever else lives on the device (reserve=)"
        )
    )


def _checked(plans: Sequence[StepPlan]) -> tuple[StepPlan, ...]:
    """Return plans that a backend can carry out.

    Raises:
        BadRequest: one is no plan of this engine.
    """
    for plan in plans:
        if not isinstance(plan, StepPlan) or "compiled" not in plan.signature:
            found = repr(plan.engine) if isinstance(plan, StepPlan) else type(plan).__name__
            raise BadRequest(
                f"plans= has one of {found}; expected plans of engine='inductor' for one device, "
                "such as backend.plans or what planner.load returns of their files"
            )
    return tuple(plans)


def _device_of(graph: HandedGraph) -> Any:
    from torch import Tensor

    from planner.graphs.hardware.detect import device_at

    where = next((t.device for t in graph.inputs if isinstance(t, Tensor)), None)
    return "cpu" if where is None else device_at(where.type, where.index or 0)


_BY_NAME: dict[int, tuple[Mapping[str, Any], PlanningBackend]] = {}


def by_name(
    gm: fx.GraphModule, example_inputs: list[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph for ``torch.compile(backend="remat_planner", options={"budget": "40GB"})``.

    Args:
        gm, example_inputs: what Dynamo calls a backend with.
        options: the budget, and whatever else ``backend`` is told.

    Raises:
        BadRequest: no budget is said.
    """
    if options is None or "budget" not in options:
        raise BadRequest('pass options={"budget": "40GB", ...} to torch.compile')
    _, known = _BY_NAME.setdefault(id(options), (options, _of(options)))
    return known(gm, example_inputs)


def _of(options: Mapping[str, Any]) -> PlanningBackend:
    said = {k: v for k, v in options.items() if k not in ("budget", "plans", "calls")}
    return PlanningBackend(
        options["budget"], said, options.get("plans", ()), options.get("calls", 1)
    )


__all__ = ["PlanningBackend", "backend", "by_name"]
