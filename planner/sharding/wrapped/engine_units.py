"""Units as an engine of its own runs them, in the place of those captured for torch to run.

Their border is the same; what lies within is the engine's.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.running.engines.engine import CapturedUnit
from planner.sharding.wrapped.boundary import UnitCapture


def run_by_engine(capture: UnitCapture, found: CapturedUnit) -> UnitCapture:
    """Return a unit with the ops of an engine between its borders.

    Args:
        capture: as torch runs it.
        found: as the engine does.

    Raises:
        CaptureError: not the same crosses the border.
    """
    arriving = [i for i, v in enumerate(capture.tangents) if v is not None]
    differs = (
        f"returns {len(found.outputs)} tensors and takes {len(found.tangents)} gradients, eager "
        f"mode {len(capture.outputs)} and {len(arriving)}"
    )
    if (len(capture.outputs), len(arriving)) != (len(found.outputs), len(found.tangents)):
        model = capture.signature["model"]
        raise GraphsCaptureError(f"compiled, a {model} {differs}; engine='op_by_op' may take it")
    given = dict(zip(arriving, found.tangents, strict=True))
    parameters = (
        replace(p, value=value, gradient=gradient)
        for p in capture.parameters
        for value, gradient in (found.parameters[p.name],)
    )
    return replace(
        capture,
        captured=found.captured,
        parameters=tuple(parameters),
        inputs=tuple(value for value, _ in found.inputs),
        input_gradients=tuple(gradient for _, gradient in found.inputs),
        outputs=found.outputs,
        tangents=tuple(given.get(i) for i in range(len(capture.tangents))),
        engine_unit=found,
    )
