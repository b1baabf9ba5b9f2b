"""What of a card decides which kernels torch runs on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """A compute capability (``None``: a card of AMD, whose own is none), and what is assumed of it.

    ``prefers_cudnn`` says that attention tries cuDNN's kernels first, which torch does on Hopper
    and datacenter Blackwell with cuDNN after 9.15, as the wheels for CUDA 13 have it.
    """

    capability: tuple[int, int] | None
    prefers_cudnn: bool

    @property
    def is_nvidia(self) -> bool:
        """Whether cuDNN is there at all."""
        return self.capability is not None

    def within(self, least: tuple[int, int], most: tuple[int, int]) -> bool:
        """Tell whether the capability lies between two, both included."""
        return self.capability is None or least <= self.capability <= most

    @property
    def low_precisions(self) -> tuple[torch.dtype, ...]:
        """The narrow types that fused attention takes."""
        both = torch.float16, torch.bfloat16
        return both if self.capability is None or self.capability[0] >= 8 else both[:1]


def card_of(architecture: str | None) -> Card:
    """Return the card of an architecture as compilers name it; without one, as an A100 is.

    >>> card_of("sm_90")
    Card(capability=(9, 0), prefers_cudnn=True)
    >>> card_of("gfx942").is_nvidia
    False
    """
    if architecture is not None and not architecture.startswith("sm_"):
        return Card(None, prefers_cudnn=False)
    digits = (architecture or "sm_80").removeprefix("sm_")
    capability = int(digits[:-1]), int(digits[-1])
    return Card(capability, prefers_cudnn=capability[0] in {9, 10})
