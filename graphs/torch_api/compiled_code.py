"""What somebody compiled (``block.compile()``) runs as it was written while a step is captured.

Dynamo leaves code alone that runs under a mode of dispatch, as capturing does; not what tensors on
a mesh call below that mode, and nothing that was compiled with ``fullgraph=True``. While torch.fx
traces it refuses whatever is compiled, in any thread.
"""

from __future__ import annotations

from typing import Any

from torch._dynamo import config, eval_frame
from torch._higher_order_ops.utils import _in_hop_compile

from planner.graphs.torch_api.patches import Patches

_NOT_COUNTED = 0


def run_as_written(patches: Patches) -> None:
    """Let nothing be compiled in the thread that captures, but what torch's operators compile.

    Args:
        patches: that the capture makes.
    """

    def theirs() -> bool:
        return patches.mine() and not _in_hop_compile()

    refuses = config.error_on_nested_fx_trace
    patches.on_undo(lambda: setattr(config, "error_on_nested_fx_trace", refuses))
    config.error_on_nested_fx_trace = False
    callback: Any = eval_frame._callback_from_stance
    patches.attribute(
        eval_frame, callback.__name__, lambda asked: None if theirs() else callback(asked)
    )
    name = "set_fullgraph_compiled_frame_count"  # since 2.13: no compiled frame is an error
    if (count := getattr(eval_frame, name, None)) is not None:
        patches.attribute(
            eval_frame, name, lambda frames: _NOT_COUNTED if theirs() else count(frames)
        )
