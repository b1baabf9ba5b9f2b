"""What a row measured, as a value: the model, the step, the recipe, and which peak was read."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from planner.graphs.hardware.devices import Device
from planner.sharding.recipes import Checkpoint


class Library(enum.Enum):
    """Whose code of a model ran."""

    FMS_FSDP = "fms-fsdp"
    FOUNDRY = "llm-foundry"
    LITGPT = "LitGPT"
    LITGPT_2023 = "LitGPT of October 2023"
    LITGPT_PRETRAINING = "LitGPT's pretraining"
    MESA = "Mesa"
    NANOGPT = "nanoGPT"
    NVIDIA = "DeepLearningExamples"
    TITAN = "torchtitan"
    TRANSFORMERS = "transformers"
    TUNE = "torchtune"


class Peak(enum.Enum):
    """Which peak was read; active is allocated."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"


class Precision(enum.Enum):
    """What compute runs in."""

    FLOAT32 = "float32"
    TRUE_BFLOAT16 = "bfloat16, parameters too"
    AMP_FLOAT16 = "autocast to float16"
    AMP_BFLOAT16 = "autocast to bfloat16"
    SHARDED_BFLOAT16 = "bfloat16, parameters sharded in float32"

    @property
    def is_autocast(self) -> bool:
        """Whether torch casts operator by operator."""
        return self in {Precision.AMP_FLOAT16, Precision.AMP_BFLOAT16}


class Sharding(enum.Enum):
    """What several devices share."""

    NONE = "one device"
    DDP = "replicated"
    FSDP = "sharded over all"
    HSDP = "sharded within groups"


@dataclass(frozen=True)
class Adapters:
    """What alone is trained: narrow layers of a rank, beside queries and values or all products."""

    rank: int
    everywhere: bool = False


@dataclass(frozen=True)
class Case:
    """What a row measured.

    ``batch`` and ``length`` are of a micro-batch (``length`` 0: images). ``accumulation`` micro-
    batches make a step; ``holds_gradients`` says that the measured one finds gradients of the step
    or micro-batch before. ``keeps_gathered`` keeps sharded weights from forward to backward.
    ``loss_chunks`` parts of the logits are made one by one. ``compiled`` says that the source
    compiled; what is predicted is eager.
    """

    library: Library
    model: str
    device: Device
    batch: int
    length: int = 0
    peak: Peak = Peak.ALLOCATED
    attention: str = "fused"
    optimizer: str = "adamw"
    precision: Precision = Precision.FLOAT32
    checkpoint: Checkpoint = Checkpoint.NONE
    sharding: Sharding = Sharding.NONE
    ranks: int = 1
    shard_ranks: int = 1
    keeps_gathered: bool = False
    accumulation: int = 1
    holds_gradients: bool = False
    adapters: Adapters | None = None
    loss_chunks: int = 1
    channels_last: bool = False
    compiled: bool = False

    @property
    def group(self) -> str:
        """Which memory rows this one is alike to."""
        if self.compiled:
            return "source compiled, predicted eager"
        if self.peak is Peak.RESERVED:
            return "reserved"
        return f"allocated, {'autocast' if self.precision.is_autocast else 'no autocast'}"

    @property
    def recipe(self) -> str:
        """How the step is spread and what it recomputes, in words."""
        said = [self.sharding.value, self.checkpoint.value]
        if self.adapters:
            where = "everywhere" if self.adapters.everywhere else "on queries and values"
            said.append(f"adapters of rank {self.adapters.rank} {where}")
        if self.accumulation > 1:
            said.append(f"{self.accumulation} micro-batches")
        return ", ".join(said)
