"""The arithmetic of training at scale that needs no graph: states, activations, caches.

Knows published formulas, each with its source, over plain numbers. Knows nothing of devices, of
models or of what a real step holds beside: buckets, gathered layers, workspace, fragmentation.
``planner.fit`` counts those.

Letters: P parameters, N ranks, s sequence, b batch, h hidden size, a attention heads, v vocabulary.

Sources: ZeRO, arXiv 1910.02054 (model states, communication); Korthikanti et al., arXiv 2205.05198
(activations); vLLM, arXiv 2309.06180, section 3 (key-value cache); DeepSpeed,
``runtime/zero/stage_1_and_2.py`` and ``stage3.py`` (its own estimators).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

STAGES = (0, 1, 2, 3)
OPTIMIZER_BYTES = {
    "adam": 8,
    "adamw": 8,
    "adagrad": 4,
    "lion": 4,
    "momentum": 4,
    "rmsprop": 4,
    "sgd": 0,
}
"""State of an optimizer for each parameter, in float32, without a master copy of the weights."""

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
WEIGHT_BITS = {"float16": 16, "int8": 8, "int4": 4}


class Stack(enum.Enum):
    """Whose bookkeeping: torch is DDP, ``ZeroRedundancyOptimizer`` and FSDP2."""

    PAPER = "ZeRO paper"
    TORCH = "torch"
    DEEPSPEED = "DeepSpeed"


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of parameters, gradients and optimizer state on one rank: ``fixed + sharded / N``."""

    fixed: int
    sharded: int

    def on(self, ranks: int) -> int:
        """Return the bytes one of ``ranks`` ranks holds.

        >>> States(fixed=10, sharded=7).on(4)
        12
        """
        return self.fixed + -(-self.sharded // ranks)

    def least_ranks(self, free_bytes: int) -> int | None:
        """Return how many ranks bring it within ``free_bytes`` each, if any number does.

        >>> States(fixed=10, sharded=7).least_ranks(12), States(10, 7).least_ranks(10)
        (4, None)
        """
        if not self.sharded:
            return 1 if self.fixed <= free_bytes else None
        room = free_bytes - self.fixed
        return max(1, -(-self.sharded // room)) if room > 0 else None


def model_states(
    trainable: int,
    frozen: int = 0,
    *,
    stage: int,
    stack: Stack = Stack.PAPER,
    precision: str = "bfloat16",
    optimizer: str = "adamw",
) -> States:
    """Return what parameters, gradients and optimizer state take at a ZeRO stage.

    The paper counts 2P of weights, 2P of gradients and 12P of Adam with its float32 copy of the
    weights; stage 1 shards the last, stage 2 gradients too, stage 3 all. In torch mixed precision
    keeps float32 weights and gradients, 8P, and casts; stage 2 is FSDP2 without resharding after
    forward, which shards everything and holds the gathered 2P from forward to backward. DeepSpeed
    has 4P more of float32 gradients, always sharded, and keeps no rules for stages 0 and 1: the
    paper's stand in. A frozen parameter is its compute copy alone, sharded at stage 3 only.

    Args:
        trainable, frozen: how many parameters.
        stage: of ZeRO, 0 to 3.
        stack: whose bookkeeping.
        precision: of compute, a key of ``ITEM_BYTES``.
        optimizer: whose state is counted, a key of ``OPTIMIZER_BYTES``.

    >>> [round(model_states(7_500_000_000, stage=s).on(64) / 1e9, 1) for s in STAGES]
    [120.0, 31.4, 16.6, 1.9]
    """
    item, state = ITEM_BYTES[precision], OPTIMIZER_BYTES[optimizer]
    copy = frozen * item
    weights = trainable * item
    gradients, optimized = weights, trainable * (state + (4 if item < 4 else 0))
    if stack is Stack.TORCH:
        gradients, optimized = weights + 2 * trainable * (4 - item), trainable * state
        if stage >= 2:
            held = weights + copy if stage == 2 else 0
            return States(held, weights + gradients + optimized + copy)
    if stack is Stack.DEEPSPEED and stage >= 2:
        sharded = gradients + optimized + 4 * trainable
        return States(weights + copy if stage == 2 else 0, sharded + (copy if stage == 3 else 0))
    parts = ((optimized, 1), (gradients, 2), (weights + copy, 3))
    sharded = sum(size for size, since in parts if stage >= since)
    return States(sum(size for size, _ in parts) - sharded, sharded)


def stage_limit(precision: str = "bfloat16", optimizer: str = "adamw") -> float:
    """Return how many times as large a model stage 2 trains, on ever more ranks, as stage 0.

    >>> stage_limit()  # the paper's 8x: 16P against 2P
    8.0
    """
    one = model_states(1, stage=0, precision=precision, optimizer=optimizer)
    return one.fixed / model_states(1, stage=2, precision=precision, optimizer=optimizer).fixed


def moved_elements(trainable: int, frozen: int = 0, *, stage: int, ranks: int) -> int:
    """Return how many elements a rank sends in a step, (N-1)/N of a few times P.

    Gradients are reduced and their sums, or the weights they make, spread: 2P. At stage 3 weights
    are gathered for forward and for backward instead, frozen ones too: 3P.

    Args:
        trainable, frozen: how many parameters.
        stage: of ZeRO, 0 to 3.
        ranks: over which the model is spread.

    >>> [moved_elements(1000, stage=s, ranks=4) for s in STAGES]
    [1500, 1500, 1500, 2250]
    """
    moved = 3 * trainable + 2 * frozen if stage == 3 else 2 * trainable
    return moved * (ranks - 1) // ranks


class Recompute(enum.Enum):
    """How much of a layer runs again in backward."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


def layer_activations(
    recompute: Recompute,
    *,
    seq: int,
    batch: int,
    hidden: int,
    heads: int,
    precision: str = "bfloat16",
) -> int:
    """Return the activation bytes that one transformer layer keeps for backward.

    In 16 bits: sbh(34 + 5as/h) with nothing recomputed, 34 sbh with attention's own matrices (or a
    fused attention that never writes them), 2 sbh with the layer's input alone. Of the 34, 2 are
    masks of one byte, of the 5, 1 is; the others double in float32.

    Args:
        recompute: how much of the layer runs again.
        seq, batch: tokens of a sample, and samples.
        hidden, heads: width of the layer, and attention heads.
        precision: of compute, a key of ``ITEM_BYTES``.

    >>> gpt3 = {"seq": 2048, "batch": 1, "hidden": 12288, "heads": 96}
    >>> [layer_activations(r, **gpt3) // 2**20 for r in Recompute]
    [2736, 816, 48]
    """
    item, tokens = ITEM_BYTES[precision], seq * batch
    if recompute is Recompute.FULL:
        return item * tokens * hidden
    linear = (16 * item + 2) * tokens * hidden
    return linear + ((2 * item + 1) * heads * seq * tokens if recompute is Recompute.NONE else 0)


def logits_bytes(seq: int, batch: int, vocab: int, precision: str = "bfloat16") -> int:
    """Return what the logits take: as computed, and once in float32 for the loss.

    Args:
        seq, batch, vocab: tokens of a sample, samples, and size of the vocabulary.
        precision: of compute, a key of ``ITEM_BYTES``.

    >>> logits_bytes(4096, 1, 128256) / 1e9
    3.152019456
    """
    return (ITEM_BYTES[precision] + 4) * seq * batch * vocab


def cache_bytes_per_token(layers: int, kv_heads: int, head_dim: int, item: int = 2) -> int:
    """Return what inference keeps of every token: a key and a value in each layer.

    Args:
        layers, kv_heads, head_dim: of the model.
        item: bytes of an element.

    >>> cache_bytes_per_token(40, 40, 128)  # OPT 13B: vLLM's 800 KB
    819200
    """
    return 2 * layers * kv_heads * head_dim * item


def weight_bytes(parameters: int, bits: int) -> int:
    """Return the bytes of the weights alone.

    >>> weight_bytes(70_000_000_000, 16), weight_bytes(3, 4)
    (140000000000, 2)
    """
    return -(-parameters * bits // 8)


def devices_for(size_bytes: int, memory_bytes: int) -> int:
    """Return over how many devices so many bytes must spread at the least.

    >>> [devices_for(p * 2 * 10**9, 80 * 10**9) for p in (7, 70, 175, 700)]
    [1, 2, 5, 18]
    """
    return -(-size_bytes // memory_bytes)
