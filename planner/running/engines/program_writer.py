"""One program of a planned step, forward or backward, written call by call.

Every call is a node of the joint graph. Values die early because the generated code drops each
variable after its last use and the arguments are given up by the caller; one that a schedule keeps
longer is used once more, by a call that does nothing. Knows how each kernel is written, first and
again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from planner.errors import PlanMismatch
from planner.graphs.capture.joint_graph import Joint
from planner.graphs.capture.lowered import Lowered, Lowering, Role
from planner.graphs.capture.node_kinds import (
    BATCH_NORM,
    BATCH_NORM_OF_CUDA,
    RECURRENT,
    is_random,
    is_scalar,
    is_view,
    new_statistics,
)
from planner.graphs.capture.opaque_units import unit_called
from planner.graphs.capture.passes.inplace import written_over
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.host_memory import HostLayout
from planner.graphs.torch_api.collective_ops import communicates, waits
from planner.graphs.torch_api.cuda.cudnn_recurrent import WARNS_ONCE
from planner.graphs.torch_api.fx_graphs import before_all, take_arguments_in_a_list, yield_where
from planner.graphs.torch_api.operators import OpOverload, out_variant
from planner.running.called_units import CalledUnit
from planner.running.rng import rng_state, run_for_backward, run_with_rng_state


@dataclass
class Away:
    """An offloaded value: its joint node, whether it leaves still, or comes back already."""

    root: fx.Node
    leaves: bool = True
    returns: bool = False


@dataclass
class HostSide:
    """What two programs know of the host: what opens a block, and where each copy lies in it.

    ``step`` is the one being written; a copy's place is that of its OFFLOAD step.
    """

    open_block: Callable[[], Any] | None = None
    layout: HostLayout = field(default_factory=lambda: HostLayout({}, 0))
    movable: frozenset[int] = frozenset()
    step: int = 0
    opened: bool = False
    away: dict[int, Away] = field(default_factory=dict)


def hand_over(held: list[Any]) -> None:
    """Mark where a program hands its results over; it is never called."""
    raise AssertionError(held)


def keep_until_here(value: Any) -> None:
    """Use a value, so that it lives until then: its bytes are planned to be free no earlier."""
    del value


_WITHOUT_STATISTICS = torch.ops.aten._native_batch_norm_legit.no_stats
_WRITING_STATISTICS: dict[Any, Any] = {
    BATCH_NORM: torch.ops.aten._native_batch_norm_legit.default,
    BATCH_NORM_OF_CUDA: torch.ops.aten._batch_norm_with_update.default,
}


@dataclass
class ProgramWriter:
    """One program being written; ``env`` maps joint nodes that are live to nodes of this graph."""

    joint: Joint
    lowering: Lowering
    repeated: frozenset[fx.Node]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[Any, fx.Node] = field(default_factory=dict)
    arguments: list[Any] = field(default_factory=list)
    placeholders: dict[Any, fx.Node] = field(default_factory=dict)
    ran: set[fx.Node] = field(default_factory=set)
    can_save: bool = False
    touched: frozenset[int] = frozenset()
    """The values that the op written last reads or makes: these are in use to its end."""
    host: HostSide = field(default_factory=HostSide)
    """What is on the host or on its way; forward and backward share it."""
    units: Mapping[str, CalledUnit] = field(default_factory=dict)
    """The units that the step of a root calls, by their paths."""

    def get(self, node: fx.Node) -> fx.Node:
        """Return the live copy of a joint node, writing views anew and asking for arguments."""
        if node not in self.env:
            if waits(node.target):
                made = node.args[0]
                assert isinstance(made, fx.Node)
                self.env[node] = self.get(made)  # it has been waited for where it was made
            elif node.op == "call_function" and not self._is_root(node):
                self.env[node] = self.graph.node_copy(node, self.get)
            elif node.op == "get_attr":
                self.env[node] = self.graph.node_copy(node)
            else:
                self.env[node] = self.argument(node, node.meta.get("val"))
        return self.env[node]

    def _is_root(self, node: fx.Node) -> bool:
        if is_scalar(node):
            return False
        if node.target is operator.getitem:
            parent = node.args[0]
            assert isinstance(parent, fx.Node)
            return not is_view(parent)
        return not is_view(node)

    def argument(self, key: Any, value: Any) -> fx.Node:
        """Add a placeholder for a joint node or the RNG state of one."""
        kernel = isinstance(key, tuple) or key.op == "call_function"
        if (kernel and not self.can_save) or key in self.placeholders:
            raise PlanMismatch(
                f"the step uses {key} where the plan does not hold it; make the plan again with "
                "planner.fit"
            )
        label = _label(key) if isinstance(key, tuple) else key.name
        spot = self.placeholders[self.arguments[-1]] if self.arguments else before_all(self.graph)
        with self.graph.inserting_after(spot):
            made = self.graph.placeholder(label)
        made.meta["val"] = value
        self.arguments.append(key)
        self.env[key] = self.placeholders[key] = made
        return made

    def run(self, lowered: Lowered, outputs: Sequence[int]) -> None:
        """Write one COMPUTE step."""
        node = lowered.node
        if node is None or lowered.role is Role.TANGENT:
            return
        if lowered.role is Role.RNG_STATE:
            if node in self.repeated:
                state = self.graph.call_function(rng_state, (_device(node),))
                self.env[(Role.RNG_STATE, node)] = state
        elif lowered.role is Role.BUFFER_UPDATE:
            buffer = self.joint.buffers[lowered.buffer]
            self.graph.call_function(
                torch.ops.aten.copy_.default, (self.get(buffer), self.get(node))
            )
        else:
            self.forget(outputs)
            self._kernel(node)
            for follower, overwrite in lowered.then:
                operand = self.get(overwrite.operand)
                args = fx.node.map_arg(follower.args, self.get)
                kwargs = fx.node.map_arg(follower.kwargs, self.get)
                target, keyword = overwrite.target, overwrite.keyword
                head: tuple[Any, ...] = (follower.target, target, keyword, operand)
                self.env[follower] = self.graph.call_function(written_over, (*head, *args), kwargs)

    def _kernel(self, node: fx.Node) -> None:
        again = node in self.ran
        self.ran.add(node)
        in_place = () if again else self._written_in_place(node)
        statistics = new_statistics(node) if again or in_place else ()
        if in_place:
            made = self.graph.call_function(*in_place)
        elif again and is_random(node):
            made = self._replayed(node)
        elif statistics:
            # other forward passes may have changed the statistics, which it ignores, meanwhile
            made = self.graph.call_function(*_without_statistics(node, self.get))
        elif node.target is RECURRENT:
            args = (RECURRENT, *fx.node.map_arg(node.args, self.get))
            made = self.graph.call_function(run_for_backward, args)
        elif node.target in WARNS_ONCE:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.get)
            made = self.graph.call_function(WARNS_ONCE[node.target], args, kwargs)
        elif (told := unit_called(node.target, node.args)) is not None:
            made = self._unit(node, told)
        else:
            made = self.graph.node_copy(node, self.get)
        self.env[node] = made
        for user in node.users:
            if user.target is operator.getitem and user.args[1] not in statistics:
                self.env[user] = self.graph.node_copy(user, self.get)
        for wait in _waits_for(node):
            # at once: what a collective reads is free only then, and so it is planned
            self.env[wait] = self.graph.node_copy(wait, self.get)

    def _written_in_place(self, node: fx.Node) -> tuple[Any, ...]:
        """Return the call that writes new values of buffers where they lie, if that is its way."""
        direct = self.lowering.in_place
        statistics = node.target in _WRITING_STATISTICS and any(u in direct for u in node.users)
        if not statistics and node not in direct:
            return ()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.get)
        if statistics:
            return _WRITING_STATISTICS[node.target], args, kwargs
        assert isinstance(node.target, OpOverload)
        variant = out_variant(node.target)
        assert variant is not None, "it was asked for"
        target, keyword = variant
        return target, args, {**kwargs, keyword: self.get(self.joint.buffers[direct[node]])}

    def _unit(self, node: fx.Node, told: Mapping[str, Any]) -> fx.Node:
        """Write the call of a unit, or of its backward pass, which reads none of its inputs."""
        unit, key = self.units[told["unit"]], (CalledUnit, told["unit"])
        given = fx.node.map_arg(node.args[0], self.get)
        if not self.can_save:
            both = self.graph.call_function(unit.run, (given, told["wanted"]))
            self.env[key] = self.graph.call_function(operator.getitem, (both, 0))
            return self.graph.call_function(operator.getitem, (both, 1))
        args = (self.kept(key), given, told["arrived"], told["wanted"])
        return self.graph.call_function(unit.differentiate, args)

    def _replayed(self, node: fx.Node) -> fx.Node:
        state = self.kept((Role.RNG_STATE, node))
        args = fx.node.map_arg(node.args, self.get)
        kwargs = fx.node.map_arg(node.kwargs, self.get)
        head: tuple[Any, ...] = (state, _device(node), node.target)
        return self.graph.call_function(run_with_rng_state, (*head, *args), kwargs)

    def free(self, value: int) -> None:
        """Drop a value here, and not after its last use if that was before."""
        if value not in self.touched:
            lives_in = self.lowering.value_of
            holders = [k for k in self.env if value in lives_in.get(k, ())]
            for key in sorted(holders, key=lambda k: len(lives_in[k]))[:1]:
                self.graph.call_function(keep_until_here, (self.env[key],))
        self.forget((value,))

    def root(self, value: int) -> fx.Node:
        """Return the joint node whose tensor a value is, of which ``get`` writes views anew.

        Of several, each of which writes over the one before, the last: an op runs them all.
        """
        made = (k for k, on in self.lowering.value_of.items() if on == (value,))
        return [k for k in made if self._is_root(k)][-1]

    def kept(self, key: tuple[Any, ...]) -> fx.Node:
        """Return what is no tensor of the joint graph, asking for an argument if it is not here."""
        return self.env.get(key) or self.argument(key, None)

    def forget(self, values: Sequence[int]) -> None:
        """Drop every node that lives in one of these values: they are dead, or made anew."""
        dead = set(values)
        lives_in = self.lowering.value_of
        for key in [k for k in self.env if not isinstance(k, tuple) and k.op == "call_function"]:
            if dead.intersection(lives_in.get(key, ())):
                del self.env[key]

    def reorder(self, keys: Sequence[Any]) -> None:
        """Put the placeholders in the order of these keys."""
        for key in reversed(keys):
            before_all(self.graph).append(self.placeholders[key])

    def hand_over(self, results: Sequence[fx.Node]) -> None:
        """Give results to the caller, who empties the list, and go on when asked to."""
        held = self.graph.call_function(list, (list(results),))
        self.graph.call_function(hand_over, (held,))

    def compile(self, results: Sequence[Any] | None) -> Callable[[list[Any]], Any]:
        """Finish the program: drop what nobody reads, generate boxed code.

        Args:
            results: what it returns; ``None`` if it hands its results over one after another.
        """
        self.graph.output(None if results is None else list(results))
        for made in reversed(list(self.graph.nodes)):
            cheap = made.target is operator.getitem or made.op == "get_attr" or _is_view_call(made)
            if made.op != "placeholder" and cheap and not made.users:
                self.graph.erase_node(made)
        take_arguments_in_a_list(self.graph)
        if results is None:
            yield_where(self.graph, hand_over)
        module = fx.GraphModule(self.joint.module, self.graph)
        return module.forward


def _without_statistics(
    node: fx.Node, get: Callable[[fx.Node], fx.Node]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the call that runs batch norm again without looking at running statistics."""
    x, weight, bias, *rest = fx.node.map_arg((*node.args[:3], *node.args[5:]), get)
    if node.target is BATCH_NORM_OF_CUDA:  # it wants some, of this size, and copies them
        return BATCH_NORM_OF_CUDA, (x, weight, bias, weight, weight, *rest)
    return _WITHOUT_STATISTICS, (x, weight, bias, *rest)


def _waits_for(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that wait for what a collective makes, of several tensors for each."""
    for user in node.users if communicates(node.target) else ():
        if user.target is operator.getitem:
            yield from (wait for wait in user.users if waits(wait.target))
        elif waits(user.target):
            yield user


def _label(key: tuple[Any, ...]) -> str:
    what, of = key
    if what is CalledUnit:
        return f"called_{of.replace('.', '_')}"
    return f"{of.name}_rng" if what is Role.RNG_STATE else f"host_{of}"


def _is_view_call(node: fx.Node) -> bool:
    """Tell a written call that only makes a view, by the operator's own schema."""
    return isinstance(node.target, OpOverload) and node.target.is_view


def _device(node: fx.Node) -> torch.device:
    return next(iter(tensors_in(node.meta["val"]))).device
