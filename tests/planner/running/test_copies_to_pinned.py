"""Which stream waits for which, with streams that only write that down: no card is needed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.plan.states import StatesOnHost
from planner.running import copies_to_pinned, states_on_host
from planner.running.copies_to_pinned import Pinned
from planner.running.host_copies import HostMemory

DEVICE = torch.device("cuda")


class _Streams:
    """What streams and events are asked for, in order."""

    def __init__(self, status: int = 0) -> None:
        self.log: list[str] = []
        self.status = status
        self.names = iter(("out", "back"))
        self.compute = self.stream("compute")

    def stream(self, name: str) -> SimpleNamespace:
        def recorded() -> str:
            self.log.append(f"event on {name}")
            return f"end of {name}"

        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.log.append(f"{name} waits for {event}"),
            record_event=recorded,
            synchronize=lambda: self.log.append(f"the host waits for {name}"),
        )

    @contextmanager
    def on(self, stream: SimpleNamespace) -> Iterator[None]:
        self.log.append(f"copies on {stream.name}")
        yield

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = copies_to_pinned.torch.cuda
        runtime = SimpleNamespace(
            cudaHostRegister=lambda *args: self.status, cudaHostUnregister=lambda address: 0
        )
        monkeypatch.setattr(copies_to_pinned, "_forget_error", lambda device: None)
        monkeypatch.setattr(cuda, "Stream", lambda device: self.stream(next(self.names)))
        monkeypatch.setattr(cuda, "current_stream", lambda device: self.compute)
        monkeypatch.setattr(cuda, "stream", self.on)
        monkeypatch.setattr(cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(cuda, "synchronize", lambda device: None)


def test_copies_wait_for_compute_and_compute_waits_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = _Streams()
    streams.patch(monkeypatch)
    link = Pinned(DEVICE)
    block = link.block(192)
    source = torch.arange(64, dtype=torch.uint8)
    left = link.out(block, 128, source)
    assert streams.log == ["out waits for compute", "copies on out", "event on out"]
    left()
    assert streams.log[3:] == ["compute waits for end of out"]
    target = torch.zeros(64, dtype=torch.uint8)
    arrived = link.back(block, 128, target)
    assert streams.log[4:] == ["back waits for compute", "copies on back", "event on back"]
    arrived()
    assert streams.log[7:] == ["compute waits for end of back"]
    assert torch.equal(source, target)
    del block, left, arrived


def test_what_cannot_be_pinned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _Streams(status=2)
    streams.patch(monkeypatch)
    with pytest.raises(planner.HostMemoryError, match=r"192 B .*cudaHostRegister: error 2"):
        Pinned(DEVICE).block(192)


def test_the_stream_of_the_memory_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was given up is collected anywhere, where another stream may be current."""
    streams = _Streams()
    streams.patch(monkeypatch)
    link = Pinned(DEVICE)
    wait = link.out(link.block(64), 0, torch.zeros(64, dtype=torch.uint8))
    streams.compute = streams.stream("another")
    wait()
    assert streams.log[3:] == ["another waits for end of out", "compute waits for end of out"]


def test_a_new_run_waits_for_what_an_old_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _Streams()
    streams.patch(monkeypatch)
    Pinned(DEVICE).settle()
    assert streams.log == ["out waits for back"]


def test_states_are_there_when_a_step_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint reads pinned memory at once, which no stream keeps it from."""
    streams = _Streams()
    streams.patch(monkeypatch)
    monkeypatch.setattr(states_on_host, "device_of", lambda model: DEVICE)
    monkeypatch.setattr(states_on_host, "require_separable", lambda *_: None)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    states = StatesOnHost((("weight",), ("bias",)), 2, 2**16, 1.0, 1)
    plan: Any = SimpleNamespace(states=states, host=None, signature={})
    states_on_host.offload_states(optimizer, plan, model)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    copied = [line for line in streams.log if line.startswith(("copies on out", "the host"))]
    assert copied[-1] == "the host waits for out"
    assert "copies on out" in copied
    del optimizer
    gc.collect()  # its memory is unpinned while that is patched


def test_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _Streams().patch(monkeypatch)
    memory = HostMemory(64, DEVICE, None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(planner.HostMemoryError, match="which a CUDA graph cannot"):
        memory.take()


def test_memory_that_the_system_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _Streams().patch(monkeypatch)
    with pytest.raises(planner.HostMemoryError, match="pinned memory of the host"):
        Pinned(DEVICE).block(2**60)
