"""What an estimate holds, as values: weights, activations, model states by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from planner.textbook.architecture import Architecture
from planner.textbook.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights in one format. ``serving_devices`` hold a cache and the reserve as well."""

    format: str
    size_bytes: int
    devices: int
    serving_devices: int


@dataclass(frozen=True, slots=True)
class Activations:
    """What backward needs of a micro-batch, for one way to recompute.

    ``layer_bytes`` are kept of one layer (the last); ``total_bytes`` are held when backward begins:
    of layers, embeddings, head, logits and loss, and ``cast_bytes`` of weights that autocast cast;
    ``peak_bytes`` has the gradients of the loss, or a layer that is made again, on top.
    """

    recompute: str
    layer_bytes: int
    total_bytes: int
    peak_bytes: int
    cast_bytes: int


@dataclass(frozen=True, slots=True)
class StageStates:
    """Model states at one ZeRO stage, and the least number of devices to train on.

    ``state_bytes`` is by bookkeeping ("ZeRO paper", "torch", "DeepSpeed"); ``devices`` by what is
    held beside the paper's states: "states" nothing, or the activations of a way to recompute and
    the reserve. ``None`` means that no number of devices is enough.
    """

    stage: int
    state_bytes: Mapping[str, int]
    largest_parameters: int
    moved_bytes: int
    devices: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class PartedLayers:
    """What a device holds at stage 3 with full recomputation, layers parted over ``degree`` ranks.

    The devices that part a layer see the same samples; activations of each are taken to be parted
    evenly, as with sequence parallelism.
    """

    degree: int
    peak_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Estimated:
    """Everything that was asked and found."""

    architecture: Architecture
    gpus: int
    device: str
    memory_bytes: int
    reserve_bytes: int
    precision: str
    optimizer: str
    seq: int | None
    batch: int
    decoder_seq: int | None
    attention: str
    family: str | None
    cache_token_bytes: int | None
    cache_bytes: int | None
    weights: tuple[Weights, ...]
    stages: tuple[StageStates, ...]
    activations: tuple[Activations, ...]
    parted: tuple[PartedLayers, ...] = ()
    pipeline: Pipeline | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)
