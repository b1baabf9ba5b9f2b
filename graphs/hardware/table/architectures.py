"""Which architecture compilers build for a card: by it torch chooses kernels.

NVIDIA: https://developer.nvidia.com/cuda-gpus; AMD: the LLVM user guide for AMDGPU.
"""

from __future__ import annotations

import re

_OF: tuple[tuple[str, str], ...] = (
    (r"P100", "sm_60"),
    (r"V100", "sm_70"),
    (r"T4|RTX-20|TITAN-RTX|Quadro-RTX", "sm_75"),
    (r"A100|A800|A30$", "sm_80"),
    (r"A40|A10G?$|A2$|RTX-30|RTX-A", "sm_86"),
    (r"L4$|L20$|L40|RTX-40\d\d|RTX-\d000-Ada", "sm_89"),
    (r"H100|H800|H20|H200|GH200", "sm_90"),
    (r"B200|GB200", "sm_100"),
    (r"B300|GB300", "sm_103"),
    (r"RTX-50\d\d|RTX-PRO", "sm_120"),
    (r"MI2", "gfx90a"),
    (r"MI300|MI325", "gfx942"),
    (r"MI35", "gfx950"),
    (r"RX-7900|PRO-W7900", "gfx1100"),
)


def architecture_of(name: str) -> str | None:
    """Return the architecture of a device of the table, ``None`` of any other.

    >>> architecture_of("H100-SXM"), architecture_of("RTX-4000-Ada"), architecture_of("cpu")
    ('sm_90', 'sm_89', None)
    """
    return next((found for pattern, found in _OF if re.match(pattern, name)), None)
