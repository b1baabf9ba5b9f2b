"""What to train, as the user gave it, and the steps that can be assembled from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from torch import nn

from planner.errors import CaptureError
from planner.graphs import Op, Phase
from planner.graphs.capture.rewrites import AS_CAPTURED
from planner.graphs.hardware.cluster import Cluster
from planner.host_option import node_limit_bytes
from planner.plan.configuration import Configuration
from planner.request import Request
from planner.running.engines import engine_of
from planner.sharding.configurations import WHOLE, Parted, parted_as
from planner.sharding.held import AsCompiled, AsPlanned, Holds
from planner.sharding.least_states import least_states, states_of
from planner.sharding.parted.growth import Growing, growing
from planner.sharding.parted.ways import Ways
from planner.sharding.samples import samples_in, with_samples
from planner.sharding.space import Space
from planner.sharding.step_graph.assembly import assemble, what_may_wait
from planner.sharding.step_graph.sharded_step import ShardedStep
from planner.sharding.step_graph.step_rules import ModelStates
from planner.sharding.wrapped.unit_captures import (
    ModelCapture,
    Rewritten,
    UnitsOf,
    units_to_rewrite,
)


@dataclass(frozen=True)
class Captures:
    """What to train, as a person said it; captures and assembles what is asked for.

    ``rewrite`` is the variant of the root's step, ``shared`` what all of them but the one as it is
    have in common, by precision, micro-batch and way. ``ways`` are those in which layers may be
    parted over ranks. A capture of them needs no ranks: their model is a copy without data, on a
    mesh over ranks that are not there.
    """

    request: Request
    ways: Ways = field(default_factory=Ways)
    rewrite: str = AS_CAPTURED.name
    shared: dict[tuple[str, int, Parted], Rewritten] = field(
        default_factory=dict, repr=False, compare=False
    )
    _models: dict[Parted, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    _impossible: dict[Parted, str] = field(default_factory=dict, repr=False, compare=False)
    _grows: dict[tuple[int, int], Growing] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def captured(self) -> Callable[[Configuration], ModelCapture]:
        """Capture the units that a configuration runs, each distinct ones once."""
        request = self.request
        samples = samples_in(request.inputs)

        @cache
        def capture(precision: str, micro_batch: int, parted: Parted) -> ModelCapture:
            planned, key = self.rewrite != AS_CAPTURED.name, (precision, micro_batch, parted)
            if planned and key in self.shared:
                return self.shared[key](self.rewrite)
            said = "" if parted == WHOLE else f", layers parted over {parted.ranks} ranks"
            request.tell(f"capturing {micro_batch} samples in {precision}{said}")
            inputs, targets = with_samples((request.inputs, request.targets), samples, micro_batch)
            with self._model(parted) as model:
                taken_apart = units_to_rewrite(
                    model,
                    inputs,
                    loss=request.loss,
                    targets=targets,
                    device=request.hardware,
                    costs=request.costs,
                    dynamic=request.dynamic,
                    precision=precision,
                    cluster=None if parted == WHOLE else self._cluster,
                    engine=self._engine,
                    planned=planned,
                )
            if planned:
                self.shared[key] = taken_apart
            return taken_apart(self.rewrite)

        def of(c: Configuration) -> ModelCapture:
            return capture(c.computes_in, c.micro_batch, parted_as(c))

        return of

    @cached_property
    def _engine(self) -> UnitsOf | None:
        """Return how the engine captures units, if it does not run those captured for torch."""
        units, request = engine_of(self.request.engine).units, self.request
        if units is None:
            return None
        units.check(request.model)
        captured = units.captured
        return lambda unit, call: captured(unit, call, request)

    @cached_property
    def _cluster(self) -> Cluster:
        return self.request.cluster(self.request.world_size)

    @contextmanager
    def _model(self, parted: Parted) -> Iterator[nn.Module]:
        """Yield the model, its layers parted; what is captured meanwhile sees the ranks."""
        if parted == WHOLE:
            yield self.request.model
            return
        from planner.graphs.torch_api.absent_ranks import absent_ranks
        from planner.sharding.parted.parallelize import parallelize, without_data

        with absent_ranks(parted.ranks) as mesh:
            if parted not in self._models:
                model = without_data(self.request.model)
                parallelize(model, mesh, self.ways.styles[parted], source=None)
                self._models[parted] = model
            yield self._models[parted]

    def impossible(self, c: Configuration) -> str:
        """Say why a configuration cannot be captured, if it cannot.

        Its layers cannot be parted as it says, or the model does not take so few samples (a batch
        norm of rows wants two), although it takes as many as it was given.
        """
        parted = parted_as(c)
        if parted == WHOLE:
            return self._too_few(c)
        if parted not in self._impossible:
            self._impossible[parted] = ""
            try:
                self.captured(replace(c, micro_batch=1))
            except CaptureError as error:
                self._impossible[parted] = _not_in_parts(error, parted)
        return self._impossible.get(parted, "")

    def _too_few(self, c: Configuration) -> str:
        try:
            self.captured(c)
        except CaptureError as error:
            if c.micro_batch >= (given := samples_in(self.request.inputs)):
                raise
            self.captured(replace(c, micro_batch=given))
            return str(error)
        return ""

    def step(self, c: Configuration, cluster: Cluster) -> ShardedStep:
        """Assemble one rank's step."""
        return assemble(self.captured(c), c, cluster, self.request.optimizer)

    def space(self, cluster: Cluster, among: Sequence[Configuration]) -> Space:
        """Return the search space of these configurations on a cluster."""
        whole = any(c.tensor_ranks == 1 for c in among)
        return Space(
            tuple(among),
            lambda c: c.accumulation * compute_seconds(self.captured(c)),
            lambda c: self.step(c, cluster),
            lambda c: self._quick_seconds(c, whole=whole),
            self.impossible,
            self.holds(cluster).bytes_of,
            lambda c: least_states(self._states, c),
            self.host_bytes(cluster),
            lambda c: what_may_wait(self.captured(c), c, cluster, self.request.optimizer),
        )

    def host_bytes(self, cluster: Cluster) -> float:
        """Return how much of its host a rank may take."""
        return node_limit_bytes(self.request.offload) / cluster.devices_per_node

    @cached_property
    def holds(self) -> Callable[[Cluster], Holds]:
        """Return what tells, for a cluster, what plans hold: tensors, or a compiler's code."""
        units, request = engine_of(self.request.engine).units, self.request

        @cache
        def on(cluster: Cluster) -> Holds:
            if units is None:
                return AsPlanned()
            return AsCompiled(units, self.captured, cluster, request.optimizer)

        return on

    @cached_property
    def _states(self) -> ModelStates:
        request = self.request
        accelerated = request.hardware.name != "cpu"
        return states_of(request.model, request.optimizer, accelerated=accelerated)

    def _quick_seconds(self, c: Configuration, *, whole: bool) -> float:
        """Return a bound on a step that needs no capture of these layers at this micro-batch.

        A rank has at least its share of every op, and the collectives of a whole step take no less
        over more ranks: each micro-step has as many, and there are as many times as many.

        Args:
            c: whose layers are parted; others have none.
            whole: layers are captured whole anyway.
        """
        if c.tensor_ranks == 1:
            return 0.0
        samples = c.micro_batch * c.accumulation
        known = [(n, g) for n, g in self._known(c) if n <= c.tensor_ranks]
        if whole:
            known.append((1, self._growing(replace(c, tensor_ranks=1, sequence_parallel=False))))
        compute = max((g.compute * n / c.tensor_ranks for n, g in known), default=0.0)
        sent = max((g.collectives * n / c.tensor_ranks for n, g in known), default=0.0)
        return samples * (compute + sent)

    def _known(self, c: Configuration) -> Iterator[tuple[int, Growing]]:
        """Yield what was captured of one sample over some ranks, and over how many."""
        for parted, why in self._impossible.items():
            if not why and parted.sequence == c.sequence_parallel:
                yield parted.ranks, self._growing(replace(c, tensor_ranks=parted.ranks))

    def _growing(self, c: Configuration) -> Growing:
        captured = self.captured(replace(c, micro_batch=1))
        key = (id(captured), c.tensor_ranks)
        if key not in self._grows:
            self._grows[key] = growing(captured, self._cluster, c.tensor_ranks)
        return self._grows[key]


def _not_in_parts(error: CaptureError, parted: Parted) -> str:
    """Say that layers cannot be parted so, and what to do where the model's own code fails then."""
    along = " and along the sequence" if parted.sequence else ""
    text = f"with layers parted over {parted.ranks} ranks{along}, {error}"
    own = isinstance(error.__cause__, (RuntimeError, ValueError, TypeError, IndexError))
    if not own or isinstance(error.__cause__, NotImplementedError):
        return text
    return (
        f"{text}. If it fails so only in parts, a size that this line reads is not divided by "
        f"{parted.ranks} (a number of heads, features of a head), or a tensor arrives whole where "
        "a part is expected: choose degrees that divide it, planner.TensorParallel(degrees=...), "
        "or leave the modules that make it out of the styles"
    )


def compute_seconds(captures: ModelCapture) -> float:
    """Return the time of forward and backward of one micro-step, nothing run again.

    Collectives of the model's own count: nothing hides them.
    """
    return sum(op.seconds for op in _ops(captures) if op.phase is not Phase.OPTIMIZER)


def _ops(captures: ModelCapture) -> Iterator[Op]:
    """Yield what a micro-step runs, without tables, which need not be whole."""
    yield from captures.root.own_ops()
    units = [captures.kinds[kind] for kind in captures.kind_of]
    yield from (op for unit in units if not unit.table for op in unit.graph.ops)
