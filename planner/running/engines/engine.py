"""The seam of every engine: the graph that it will run, and the programs of a plan on that graph.

A schedule of one engine's graph is none of another's, so a plan names its engine. An engine is a
file of this folder that enters itself, and a line in the folder's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from planner.errors import UnknownEngine
from planner.graphs import Schedule
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.training_step import Captured
from planner.plan.features import register_feature
from planner.plan.step_plan import StepPlan
from planner.request import Request
from planner.running.out_of_memory import Account
from planner.running.program import Program
from planner.solvers import Solution


@dataclass(frozen=True)
class Sized:
    """A program written for all sizes up to the planned ones, and how it becomes that of some.

    ``at`` takes the input tensors of a call, of which it reads shapes and strides; it returns
    ``None`` where the program would not be right.
    """

    program: Program
    at: Callable[[Sequence[Tensor]], Program | None]


@dataclass(frozen=True)
class Settled:
    """A solution that an engine stands for, and the captured step that it is a solution of.

    ``remarks`` are what a person should know of it; ``held_bytes`` is its peak, if it is not what
    the schedule's values add up to.
    """

    captured: Captured
    solution: Solution
    remarks: tuple[str, ...] = ()
    held_bytes: int | None = None


@dataclass(frozen=True)
class CapturedUnit:
    """A unit of a sharded step as an engine runs it, and what crosses its border.

    What crosses are values of the captured graph: each parameter, by its name, with its gradient;
    each input tensor with its gradient; the tensors that it returns, and the gradients that arrive
    at those of them that have one, in their order.
    """

    captured: Captured
    parameters: Mapping[str, tuple[int, int | None]]
    inputs: tuple[tuple[int, int | None], ...]
    outputs: tuple[int, ...]
    tangents: tuple[int, ...]


@dataclass(frozen=True)
class UnitsEngine:
    """How an engine runs the units of a sharded step otherwise than as they are captured for one.

    ``captured`` takes a unit, its call and the request; ``held`` a captured unit and a schedule of
    it, and returns the unit as the engine's code really runs it then, in the order of its ops.
    ``check`` refuses a model whose units it cannot capture. ``remarks`` are what a person should
    know of any plan for a device.
    """

    check: Callable[[nn.Module], None]
    captured: Callable[[nn.Module, Arguments, Request], CapturedUnit]
    held: Callable[[CapturedUnit, Schedule], CapturedUnit]
    remarks: Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Applied:
    """How a plan is to be run: on which class of model, with which loss.

    ``on_mismatch`` and ``replan`` say what a call does that is not the planned one, ``account`` is
    told if memory runs out.
    """

    base: type[nn.Module]
    loss: Callable[..., Any] | None
    on_mismatch: str
    replan: Callable[..., StepPlan] | None = None
    account: Account | None = None


@dataclass(frozen=True)
class OwnWay:
    """What an engine holds and takes without a plan, under a setting of its own.

    ``why`` says why that is not known, if it is not; the peak is ``None`` then.
    """

    name: str
    peak_bytes: int | None
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Engine:
    """Two functions: the graph for a request and the name of a rewrite, and the program of a plan.

    The program takes a plan, a model, the loss and where Python holds floats that are to be inputs
    of it; ``any_size``, if the engine has it, takes the same. Both raise ``PlanMismatch`` if the
    model does something else than was planned. ``version`` rises when plans made with an older one
    can no longer be carried out as they are.

    An engine whose code is a compiler's has no program but a ``forward``, which takes a plan, the
    model and how it is applied, and returns what the model's class does when it is called. Where
    what a schedule holds is the compiler's to say, ``settle`` solves within a budget of bytes.
    ``without_plan`` returns a model that the engine's own kernels run plainly, called as a planned
    one, if those are not eager mode's.
    """

    name: str
    captured: Callable[[Request, str], Captured]
    program: (
        Callable[[StepPlan, nn.Module, Callable[..., Any] | None, Sequence[Path]], Program] | None
    ) = None
    any_size: (
        Callable[[StepPlan, nn.Module, Callable[..., Any] | None, Sequence[Path]], Sized] | None
    ) = None
    version: int = 1
    moves_values: bool = False
    """Whether its programs carry out copies to the host and back."""
    sharded: bool = False
    """Whether it also carries out the units of a sharded step."""
    parallelized: bool = False
    """Whether it runs models whose layers are parted over ranks."""
    units: UnitsEngine | None = None
    """How it captures those units; ``None`` takes them as they are captured for a sharded step."""
    forward: Callable[[StepPlan, nn.Module, Applied], Callable[..., Any]] | None = None
    settle: Callable[[Captured, int, Request], Settled] | None = None
    least: Callable[[Captured, Request], int] | None = None
    """Returns the least budget that is quickly known to work, where ``settle`` says what holds."""
    without_plan: Callable[[nn.Module, Callable[..., Any] | None], nn.Module] | None = None
    own_ways: Callable[[Captured], Iterable[OwnWay]] | None = None
    """What it makes of a captured step without a plan, for a table beside plans."""


ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> Engine:
    """Enter an engine under its name; a name taken twice raises ``ValueError``."""
    if engine.name in ENGINES:
        raise ValueError(f"an engine named {engine.name!r} is already registered")
    register_feature("engine", engine.name, engine.version)
    ENGINES[engine.name] = engine
    return engine


def engine_of(name: str) -> Engine:
    """Return the engine of a name.

    Raises:
        UnknownEngine: none has it; the message lists those there are.
    """
    if name not in ENGINES:
        raise UnknownEngine(f"unknown engine {name!r}; valid engines: {', '.join(ENGINES)}")
    return ENGINES[name]
