"""What each stage of a pipeline would hold, on paper: nothing here is carried out.

A model is cut into stages of consecutive layers, one after another on devices of their own. With
one forward and one backward in turn (1F1B, arXiv 2104.04473) stage r of P has started
``min(M, P - r)`` of M micro-batches before it ends the first, and holds what their backward needs:

    peak = states + (in flight - 1) x kept at the turn + one micro-step

which was within 0.3 to 2.3 MiB of what pipelines over gloo held. So with M >= P the first stage
keeps as much as all layers do for one micro-batch; fewer in flight than stages hold less, and leave
devices idle for (P - 1) / (M + P - 1) of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.byte_sizes import format_both, format_bytes, format_percent

MOST_STAGES = 64
"""Where the search for a number of stages gives up."""


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """What a stage would hold: states, what is kept of each micro-batch in flight, and its peak."""

    index: int
    in_flight: int
    states_bytes: int
    kept_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages of as many layers each, and how many micro-batches are sent through them at a time."""

    stages: tuple[PipelineStage, ...]
    micro_batches: int

    @property
    def idle_fraction(self) -> float:
        """Of the time, what each device waits while the pipeline fills and drains."""
        extra = len(self.stages) - 1
        return extra / (self.micro_batches + extra)

    @property
    def peak_bytes(self) -> int:
        """What the fullest stage would hold."""
        return max(stage.peak_bytes for stage in self.stages)


@dataclass(frozen=True, slots=True)
class OneStage:
    """What a device holds of one micro-batch without a pipeline, which stages would divide.

    ``states_bytes`` stay as they are: there are as many devices for all layers. ``kept_bytes`` are
    kept of all layers at the turn; ``working_bytes`` are what one layer takes beside that, and what
    is gathered and reduced meanwhile.
    """

    states_bytes: int
    kept_bytes: int
    working_bytes: int


def pipeline_of(whole: OneStage, stages: int, micro_batches: int) -> Pipeline:
    """Work out what each stage would hold.

    Args:
        whole: what a device holds without a pipeline.
        stages: over how many the layers are divided, evenly.
        micro_batches: sent through at a time.

    >>> found = pipeline_of(OneStage(10, 40, 5), stages=4, micro_batches=8)
    >>> [(s.in_flight, s.peak_bytes) for s in found.stages], found.idle_fraction
    ([(4, 55), (3, 45), (2, 35), (1, 25)], 0.2727272727272727)
    """
    kept, found = -(-whole.kept_bytes // stages), []
    for index in range(stages):
        flying = min(micro_batches, stages - index)
        micro_step = kept + whole.working_bytes
        peak = whole.states_bytes + (flying - 1) * kept + micro_step
        found.append(PipelineStage(index, flying, whole.states_bytes, kept, peak))
    return Pipeline(tuple(found), micro_batches)


def possible_stages(devices: int, layers: int) -> list[int]:
    """Return the numbers of stages that a pipeline can have: each has as many devices, and a layer.

    Args:
        devices: for all layers, or groups of them over which each layer is parted.
        layers: of the model.

    >>> possible_stages(16, 12), possible_stages(1, 12)
    ([2, 4, 8], [])
    """
    most = min(devices, layers, MOST_STAGES)
    return [n for n in range(2, most + 1) if devices % n == 0]


def least_pipeline(whole: OneStage, room_bytes: int, possible: Sequence[int]) -> Pipeline | None:
    """Return the fewest stages, with the most micro-batches at a time, that fit; none may.

    Args:
        whole: what a device holds without a pipeline.
        room_bytes: of each device.
        possible: how many stages there can be, in ascending order.

    >>> found = least_pipeline(OneStage(10, 40, 5), 30, [2, 3, 4])
    >>> len(found.stages), found.micro_batches, found.peak_bytes
    (3, 1, 29)
    >>> least_pipeline(OneStage(10, 40, 5), 15, [2, 3, 4]) is None
    True
    """
    for stages in possible:
        found = None
        for micro_batches in range(1, stages + 1):
            tried = pipeline_of(whole, stages, micro_batches)
            if tried.peak_bytes > room_bytes:
                break
            found = tried
        if found is not None:
            return found
    return None


def pipeline_text(whole: OneStage, room_bytes: int, possible: Sequence[int]) -> str:
    """Say what a pipeline would hold where nothing fits without one, in a few sentences.

    Args:
        whole: what a device holds without a pipeline.
        room_bytes: of each device.
        possible: how many stages there can be, in ascending order.

    >>> print(pipeline_text(OneStage(10, 40, 5), 15, [2, 4]))
    No pipeline of up to 4 stages would do either: states and what one layer takes are 15 B of 15 B
    >>> print(pipeline_text(OneStage(10, 40, 5), 15, []))
    Nor can there be a pipeline: its stages would need devices of their own
    """
    if not possible:
        return "Nor can there be a pipeline: its stages would need devices of their own"
    alone = whole.states_bytes + whole.working_bytes
    found = least_pipeline(whole, room_bytes, possible)
    if found is None:
        return (
            f"No pipeline of up to {possible[-1]} stages would do either: states and what one "
            f"layer takes are {format_bytes(alone)} of {format_bytes(room_bytes)}"
        )
    return stages_text(found)


def stages_text(found: Pipeline) -> str:
    """Say what the stages of a pipeline would hold.

    Args:
        found: at least two stages.
    """
    first, last, count = found.stages[0], found.stages[-1], len(found.stages)
    sent = f"{found.micro_batches} micro-batch{'es' if found.micro_batches > 1 else ''}"
    return (
        f"On paper a pipeline of {count} stages would do, with at most {sent} in it at a time: "
        f"the first stage would hold {format_both(first.peak_bytes)}, the last "
        f"{format_both(last.peak_bytes)} (of each {format_bytes(first.states_bytes)} states and "
        f"{format_bytes(first.kept_bytes)} kept of each micro-batch), and each device would idle "
        f"for {format_percent(found.idle_fraction)} of the time. With as many micro-batches as "
        "stages the first would keep as much as without a pipeline. Pipelines are not carried out"
    )
