"""How FSDP2 is told what a plan decides for each unit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed.fsdp
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from planner.graphs import Schedule
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.strategy import Strategy
from planner.sharding.wrapping import Wrapping


@pytest.mark.parametrize(
    ("staying", "expected"),
    [((), {"h.0", "h.1", ""}), (("", "h.1"), {"h.0"}), (("h.0",), {"h.1", ""})],
)
def test_each_unit_is_offloaded_or_stays(
    staying: tuple[str, ...], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    paths, pinned = {module: path for path, module in model.named_modules()}, dict[str, bool]()

    def fully_shard(module: nn.Module, *, offload_policy: object, **other: Any) -> None:
        if isinstance(offload_policy, CPUOffloadPolicy):
            pinned[paths[module]] = offload_policy.pin_memory

    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", fully_shard)
    c = Configuration(Strategy.FSDP, 2, offload=True, staying=staying)
    units = [UnitPlan(path, 0, Schedule(())) for path in ("h.0", "h.1")]
    mesh: Any = SimpleNamespace(device_type="cuda")
    Strategy.FSDP.part(Wrapping).wrap(model, c, units, mesh)
    assert pinned == dict.fromkeys(expected, True)
