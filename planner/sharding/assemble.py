"""One op-level graph of a whole sharded step on one rank, communication included.

The root's ops run in their order with every unit's own in the place of its opaque ones; around each
unit lie the ops that gather its weight and reduce its gradient. Ops that take no time ("anchors")
read a buffer where torch lets go of it, so that a value lives as long as it really does. Only a
unit's own ops and its gather may run again: every schedule is one schedule a unit. Knows torch's
order of things; sizes and times are the rules'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphs import Graph, Kind, Op, Phase, Value
from graphs.cluster import Cluster
from graphs.optimizer import OptimizerLike, OptimizerStep
from planner.sharding.configuration import Configuration, Strategy
from planner.sharding.regions import Region, Regions
from planner.sharding.rules import (
    GLOO_COPIES,
    Group,
    Seconds,
    gloo_reserve_bytes,
    group_of,
    optimizer_of,
    optimizer_seconds,
    seconds_of,
)
from planner.sharding.step import Layout, ShardedStep

_SCALAR_BYTES = 8

ROOT = -1
"""Stands for the root where units are counted."""


def assemble(
    regions: Regions,
    configuration: Configuration,
    cluster: Cluster,
    optimizer: OptimizerLike | None = "adamw",
) -> ShardedStep:
    """Assemble the step that every rank runs under a configuration.

    Seconds are those of the whole optimizer step: what each micro-step does counts
    ``accumulation`` times. Communication costs what compute beside it cannot hide: the gather of a
    unit hides behind the forward of the unit before it, a gather in backward and the reduction of
    a gradient behind the backward of the unit between. Recomputation hides nothing.
    """
    builder = _Builder(regions, configuration, cluster)
    builder.reside()
    builder.forward()
    builder.backward()
    step = builder.optimizer(optimizer)
    return ShardedStep(
        graph=builder.graph(),
        configuration=configuration,
        cluster=cluster,
        units=regions.units,
        kind_of=regions.kind_of,
        kinds=tuple(kind.graph for kind in regions.kinds),
        layouts=tuple(builder.layouts),
        root_backward=builder.turn,
        host_bytes=builder.host_bytes(step),
    )


@dataclass
class _Builder:
    """A step being put together; ``maps`` hold, for root and units, values of their own graphs."""

    regions: Regions
    configuration: Configuration
    cluster: Cluster
    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    maps: dict[int, dict[int, int]] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    flats: dict[int, int] = field(default_factory=dict)
    reducing: int | None = None
    shards: list[int] = field(default_factory=list)
    reduced: list[int] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        self.root = self.regions.root
        self.sharded = self.configuration.strategy is Strategy.FSDP
        self.elsewhere = self.configuration.offload and self.cluster.device.name != "cpu"
        grain = self.cluster.device.granularity_bytes
        self.groups: dict[int, Group] = {
            i: group_of(region.parameters, self.configuration, grain, elsewhere=self.elsewhere)
            for i, region in self.regions_by_index()
        }
        self.seconds: dict[int, Seconds] = {
            i: seconds_of(group, self.configuration, self.cluster)
            for i, group in self.groups.items()
        }
        compute = {
            k: (_seconds(kind.graph, Phase.FORWARD), _seconds(kind.graph, Phase.BACKWARD))
            for k, kind in enumerate(self.regions.kinds)
        }
        self.compute = [compute[k] for k in self.regions.kind_of]

    def regions_by_index(self) -> Iterable[tuple[int, Region]]:
        """Yield the root and every unit."""
        yield ROOT, self.root
        for i in range(len(self.regions.units)):
            yield i, self.regions.kind(i)

    def name(self, index: int) -> str:
        """Name the root or a unit."""
        return "root" if index == ROOT else self.regions.units[index]

    # -- values and ops

    def value(self, name: str, size: int, kind: Kind) -> int:
        """Add a value and return its index."""
        self.values.append(Value(name, size, kind))
        return len(self.values) - 1

    def op(
        self,
        name: str,
        reads: Sequence[int] = (),
        makes: Sequence[int] = (),
        *,
        seconds: float = 0.0,
        again: bool = False,
        moved: int = 0,
        scratch: int = 0,
        module: str = "",
    ) -> int:
        """Add an op of communication, or an anchor."""
        self.ops.append(
            Op(
                name,
                name.partition(".")[0],
                tuple(dict.fromkeys(reads)),
                tuple(makes),
                seconds * self.configuration.accumulation,
                moved_bytes=moved,
                workspace_bytes=scratch,
                phase=Phase.COMMUNICATION,
                recomputable=again,
                module=module,
            )
        )
        return len(self.ops) - 1

    def own(self, index: int, op: Op, *, again: bool) -> int:
        """Add an op of the root or of a unit; return its index."""
        mapped = self.maps[index]
        graph = self.root.graph if index == ROOT else self.regions.kind(index).graph
        for v in op.outputs:
            if v not in mapped:
                size, kind = graph.values[v].size_bytes, graph.values[v].kind
                name = graph.values[v].name
                label = name if index == ROOT else f"{self.name(index)}.{name}"
                mapped[v] = self.value(label, size, kind)
        label = op.name if index == ROOT else f"{self.name(index)}.{op.name}"
        inside = "" if index == ROOT else self.name(index)
        self.ops.append(
            replace(
                op,
                name=label,
                inputs=tuple(dict.fromkeys(mapped[v] for v in op.inputs if v in mapped)),
                outputs=tuple(mapped[v] for v in op.outputs),
                seconds=op.seconds * self.configuration.accumulation,
                recomputable=again and op.recomputable,
                module=".".join(part for part in (inside, op.module) if part),
            )
        )
        return len(self.ops) - 1

    def scratch(self, size: int) -> int:
        """Return what a collective takes beside its buffers, if it is gloo's."""
        return GLOO_COPIES * size if self.cluster.device.name == "cpu" else 0

    # -- what is always there

    def reside(self) -> None:
        """Add parameters or their shards, buffers, inputs, buckets and the device's reserve."""
        mapped = self.maps[ROOT] = {}
        taken = {p.value for p in self.root.parameters}
        buffers: dict[str, int] = {}
        for v in sorted(self.root.graph.resident):
            value = self.root.graph.values[v]
            if value.kind in (Kind.BUFFER, Kind.INPUT):
                mapped[v] = self.value(value.name, value.size_bytes, value.kind)
                if value.kind is Kind.BUFFER:
                    buffers[value.name] = mapped[v]
            elif value.kind is Kind.RESERVE:
                self.value(value.name, value.size_bytes, value.kind)
            else:
                assert value.kind is Kind.PARAMETER or v in taken
        constants: dict[tuple[int, int], int] = {}
        for i, region in self.regions_by_index():
            self._parameters(i)
            if i != ROOT:
                self._unit_buffers(i, region, buffers, constants)
        if self.configuration.accumulation > 1:
            self._accumulated()
        if not self.sharded:
            size = sum(group.reduced for group in self.groups.values())
            self.value("gradient buckets", size, Kind.GRADIENT)
        self._reserves()

    def _reserves(self) -> None:
        """Add what may be held, and is not expected."""
        if late_inputs := max(map(_late_input_bytes, self.regions.kinds)):
            self.value("inputs of a unit that runs again", late_inputs, Kind.RESERVE)
        if self.sharded and self.cluster.device.name == "cpu":
            units = [group for i, group in self.groups.items() if i != ROOT]
            late = gloo_reserve_bytes(units, self.groups[ROOT])
            self.value("late releases of gloo", late, Kind.RESERVE)

    def _accumulated(self) -> None:
        """Add what micro-steps leave to the later ones.

        Under DDP gradients become views of the buckets in the last one: they are gone before the
        optimizer's step. A loss is divided by the number of micro-steps, so there are two of it.
        """
        self.value("divided loss", 2 * _SCALAR_BYTES, Kind.ACTIVATION)
        groups = self.groups.values()
        if not self.sharded:
            size = sum(group.reduced for group in groups)
            self.reduced.append(self.value("accumulated gradients", size, Kind.GRADIENT))
            self.op("micro_steps", (), self.reduced)
        elif not self.elsewhere:
            size = sum(group.gradient_shard for group in groups)
            self.value("accumulated gradients", size, Kind.GRADIENT)

    def _parameters(self, i: int) -> None:
        group = self.groups[i]
        if not self.sharded:
            self.weights[i] = self.value(f"parameters.{self.name(i)}", group.shard, Kind.PARAMETER)
        elif not self.elsewhere:
            self.value(f"shards.{self.name(i)}", group.shard, Kind.PARAMETER)

    def _unit_buffers(
        self,
        i: int,
        region: Region,
        buffers: Mapping[str, int],
        constants: dict[tuple[int, int], int],
    ) -> None:
        """Map a unit's resident values: its buffers are among the root's, constants are its own."""
        mapped = self.maps[i] = {}
        known = {*(p.value for p in region.parameters), *region.inputs}
        for v in sorted(region.graph.resident - known):
            value = region.graph.values[v]
            if value.kind is Kind.RESERVE:
                continue
            path = f"{self.name(i)}.{value.name}"
            if path in buffers:
                mapped[v] = buffers[path]
                continue
            key = (self.regions.kind_of[i], v)
            if key not in constants:
                constants[key] = self.value(path, value.size_bytes, value.kind)
            mapped[v] = constants[key]

    # -- forward

    def forward(self) -> None:
        """Add the root's forward with every unit's gather and forward in it."""
        self._gather(ROOT, seconds=0.0, exposed=self.seconds[ROOT].gather)
        calls = {call.forward: u for u, call in enumerate(self.root.calls)}
        others = {call.backward for call in self.root.calls}
        hidden, last = 0.0, ROOT
        locals_: list[int] = []  # what the frame of the root's forward still names
        for index, op in enumerate(self.root.graph.ops):
            if op.phase is Phase.BACKWARD or index in others:
                break
            if index not in calls:
                self.own(ROOT, op, again=False)
                hidden += op.seconds
                locals_ += self.ops[-1].outputs if last == ROOT else ()
                continue
            unit = calls[index]
            self._unit_forward(unit, last, hidden)
            hidden, last = self.compute[unit][0], unit
        self._drop(last)
        self.op("return.root", locals_)
        self.turn = len(self.ops)

    def _unit_forward(self, u: int, before: int, hidden: float) -> None:
        region, call = self.regions.kind(u), self.root.calls[u]
        again = self._exposed_in_backward(u)
        exposed = max(0.0, self.seconds[u].gather - hidden - again)
        gather = self._gather(u, seconds=again, exposed=exposed, before=before)
        mapped = self.maps[u]
        mapped.update(
            (v, self.maps[ROOT][r]) for v, r in zip(region.inputs, call.inputs, strict=True)
        )
        indices: list[int | None] = []
        for op in region.graph.ops:
            if op.target == "tangent":
                break
            indices.append(self.own(u, op, again=True))
        for v, r in zip(region.outputs, call.outputs, strict=True):
            self.maps[ROOT][r] = mapped[v]
        if self.sharded:
            self.op(f"used.{self.name(u)}", (self.weights[u],))
        self.layouts.append(Layout(tuple(indices), len(indices), gather))

    def _gather(
        self, i: int, *, seconds: float, exposed: float, before: int | None = None
    ) -> tuple[int, ...]:
        """Add an all-gather into a flat buffer and the copy out of it, which frees the last one."""
        if self.sharded:
            name, group = self.name(i), self.groups[i]
            flat = self.flats[i] = self.value(f"flat.{name}", group.flat, Kind.GATHERED)
            weight = self.value(f"gathered.{name}", group.gathered, Kind.GATHERED)
            self.weights[i] = weight
            again = i != ROOT
            module = "" if i == ROOT else name
            first = self.op(
                f"all_gather.{name}",
                (),
                (flat,),
                seconds=seconds,
                again=again,
                moved=group.flat,
                scratch=group.staged + self.scratch(group.flat),
                module=module,
            )
            if before is not None:
                self._drop(before)
            second = self.op(f"copy_out.{name}", (flat,), (weight,), again=again, module=module)
            self.op(f"wait.{name}", (), (), seconds=exposed, module=module)
            gathered: tuple[int, ...] = (first, second)
        else:
            gathered = ()
        region = self.root if i == ROOT else self.regions.kind(i)
        self.maps.setdefault(i, {}).update((p.value, self.weights[i]) for p in region.parameters)
        return gathered

    def _drop(self, i: int) -> None:
        if self.sharded:
            self.op(f"drop.{self.name(i)}", (self.flats[i],))

    def _exposed_in_backward(self, u: int) -> float:
        """Return what the backward of the unit after this one cannot hide of a second gather.

        The reduction of the unit after that one is hidden first.
        """
        behind = self._backward_seconds(u + 1)
        reduction = self.seconds[u + 2].reduce if u + 2 < len(self.compute) else 0.0
        free = max(0.0, behind - reduction)
        return max(0.0, self.seconds[u].gather - free)

    def _backward_seconds(self, u: int) -> float:
        """Return the plain backward of a unit; of the head, after the last one; of the stem."""
        if 0 <= u < len(self.compute):
            return self.compute[u][1]
        ops, calls = self.root.graph.ops, {c.backward for c in self.root.calls}
        first, last = min(calls), max(calls)
        span = range(len(ops))[last:] if u < 0 else range(first)
        return sum(ops[i].seconds for i in span if ops[i].phase is Phase.BACKWARD)

    # -- backward

    def backward(self) -> None:
        """Add the root's backward with every unit's backward and reduction in it."""
        calls = {call.backward: u for u, call in enumerate(self.root.calls)}
        stubs = {call.forward for call in self.root.calls}
        start = next(i for i, op in enumerate(self.root.graph.ops) if op.phase is Phase.BACKWARD)
        for index, op in enumerate(self.root.graph.ops[start:], start):
            if index in calls:
                self._unit_backward(calls[index])
            elif index not in stubs:
                self.own(ROOT, self._handed_over(op), again=False)
        self._reduce(ROOT)
        self._release()
        if self.reduced:
            self.op("reduced", self.reduced)

    def _handed_over(self, op: Op) -> Op:
        """Let the op that ends a backward keep no gradient that is in its bucket by then."""
        if self.sharded or op.target != "accumulate_grad":
            return op
        copied = {p.gradient for p in self.root.parameters}
        return replace(op, inputs=tuple(v for v in op.inputs if v not in copied))

    def _unit_backward(self, u: int) -> None:
        region, call, mapped = self.regions.kind(u), self.root.calls[u], self.maps[u]
        for v, r in zip(region.tangents, call.tangents, strict=True):
            if v is not None and r is not None:
                mapped[v] = self.maps[ROOT][r]
        layout = self.layouts[u]
        indices: list[int | None] = list(layout.ops)
        for op in region.graph.ops[layout.forward_ops :]:
            given = op.target == "tangent" and all(v in mapped for v in op.outputs)
            indices.append(None if given else self.own(u, op, again=True))
        saved = [mapped[v] for v in _saved_inputs(region)]  # by autograd, until the node ends
        self.op(f"ended.{self.name(u)}", saved)
        for v, r in zip(region.input_gradients, call.gradients, strict=True):
            if v is not None and r is not None:
                self.maps[ROOT][r] = mapped[v]
        self.layouts[u] = replace(layout, ops=tuple(indices))
        self._reduce(u)

    def _reduce(self, i: int) -> None:
        """Add the reduction of a group's gradients, which first frees the buffer of the last."""
        region = self.root if i == ROOT else self.regions.kind(i)
        name, group, module = self.name(i), self.groups[i], "" if i == ROOT else self.name(i)
        mapped = self.maps[i]
        gradients = [mapped[p.gradient] for p in region.parameters if p.gradient is not None]
        behind = self._backward_seconds(i - 1) if i != ROOT else 0.0
        exposed = max(0.0, self.seconds[i].reduce - behind)
        if not self.sharded:
            exposed /= self.configuration.accumulation  # only the last micro-step reduces
            # the root's go into the buckets one by one, a unit's when its node ends
            together = gradients if i != ROOT else ()
            self.op(f"all_reduce.{name}", together, seconds=exposed, module=module)
            return
        self.op(f"reshard.{name}", (self.weights[i],))
        self._release()
        if not gradients:
            return
        buffer = self.value(f"reduce_input.{name}", group.reduced, Kind.GRADIENT)
        shard = self.value(f"gradient_shard.{name}", group.gradient_shard, Kind.GRADIENT)
        copies = group.padded if self.cluster.device.name == "cpu" else 0
        self.op(f"copy_in.{name}", gradients, (buffer,), scratch=copies, module=module)
        self.op(
            f"reduce_scatter.{name}",
            (buffer,),
            (shard,),
            seconds=exposed,
            moved=group.reduced,
            scratch=self.scratch(group.reduced),
            module=module,
        )
        self.reducing = buffer
        if self.configuration.replicas > 1:
            self.reduced.append(shard)  # ``_all_reduce_state``, until all groups are done
        if not self.elsewhere and self.configuration.accumulation == 1:
            self.shards.append(shard)

    def _release(self) -> None:
        if self.reducing is not None:
            self.op(f"release.{self.values[self.reducing].name}", (self.reducing,))
            self.reducing = None

    # -- optimizer

    def optimizer(self, optimizer: OptimizerLike | None) -> OptimizerStep:
        """Add the optimizer's step on this rank's part and the state it keeps."""
        parameters = [p for _, region in self.regions_by_index() for p in region.parameters]
        step = optimizer_of(
            parameters,
            self.configuration,
            optimizer,
            accelerated=self.cluster.device.name != "cpu",
        )
        if optimizer is None:
            return step
        total = sum(group.shard for group in self.groups.values())
        if step.state_bytes and not self.elsewhere:
            self.value(f"{step.name} state", step.state_bytes, Kind.OPTIMIZER)
        self.ops.append(
            Op(
                "optimizer.step",
                step.name,
                tuple(self.shards),
                (),
                optimizer_seconds(step, total, self.configuration, self.cluster),
                moved_bytes=step.moved_bytes,
                workspace_bytes=0 if self.elsewhere else step.workspace_bytes,
                phase=Phase.OPTIMIZER,
                recomputable=False,
            )
        )
        return step

    def host_bytes(self, step: OptimizerStep) -> int:
        """Return what one rank keeps on its host: shards, gradients and state if offloaded."""
        if not self.configuration.offload:
            return 0
        shards = sum(group.shard + group.gradient_shard for group in self.groups.values())
        return shards + step.state_bytes + step.workspace_bytes

    def graph(self) -> Graph:
        """Finish the graph: what the loss callable returned and the gradient shards stay."""
        held = {self.maps[ROOT][v] for v in self.root.outputs if v in self.maps[ROOT]}
        made = {v for op in self.ops for v in op.outputs}
        outputs = frozenset((held | set(self.shards)) & made)
        return Graph(tuple(self.ops), tuple(self.values), outputs, self.root.graph.name)


def _saved_inputs(region: Region) -> list[int]:
    """Return the inputs that a unit's backward reads even if nothing runs again."""
    read = {v for op in region.graph.ops if op.phase is Phase.BACKWARD for v in op.inputs}
    return [v for v in region.inputs if v in read]


def _late_input_bytes(region: Region) -> int:
    """Return what else autograd may save: the inputs that only ops that run again would read.

    Whether one does is the schedule's to say, so this is a reserve: one unit's, as the others' are
    as long in memory anyway.
    """
    values, saved = region.graph.values, _saved_inputs(region)
    activations = [v for v in region.inputs if v not in saved and values[v].kind is Kind.INPUT]
    return sum(values[v].size_bytes for v in activations)


def _seconds(graph: Graph, phase: Phase) -> float:
    return sum(op.seconds for op in graph.ops if op.phase is phase)
