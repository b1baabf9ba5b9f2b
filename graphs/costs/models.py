"""The two cost models: the roofline of a data sheet, and times measured here."""

from __future__ import annotations

from planner.graphs.costs.cache import default_cache
from planner.graphs.costs.measured import measure_seconds
from planner.graphs.costs.registry import Priced, register_cost_model
from planner.graphs.costs.roofline import roofline_seconds
from planner.graphs.costs.tensor_float import tf32_kernels


@register_cost_model("roofline")
def roofline(priced: Priced) -> list[float]:
    """Estimate every time by the slower of compute and memory."""
    tf32 = tf32_kernels()
    return [roofline_seconds(work, priced.device, tf32=tf32) for work in priced.work]


@register_cost_model("measured")
def measured(priced: Priced) -> list[float]:
    """Run each distinct call once where that can be done; the others keep their estimate."""
    estimates = roofline(priced)
    if not priced.here:
        return estimates
    of_call = dict(zip(map(id, priced.calls), estimates, strict=True))
    return measure_seconds(
        priced.calls, cache=default_cache(), fallback=lambda call: of_call[id(call)]
    )
