"""The table of what differs between versions of torch, and what is said of one that is too old."""

import subprocess
import sys

import pytest
import torch

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api import versions
from planner.graphs.torch_api.versions import DIFFERENCES, newer, present, require_supported

HERE = tuple(map(int, torch.__version__.split(".")[:2]))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_this_version_has_what_the_table_says(name: str) -> None:
    row = DIFFERENCES[name]
    assert present(name) == (name if row.since <= HERE else row.stand_in)
    assert newer(name) is not None


def test_what_is_not_admitted_has_a_stand_in_or_is_refused() -> None:
    assert all(row.stand_in for row in DIFFERENCES.values() if row.since > versions.OLDEST)


def test_an_old_name_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.distributed:all_gather_single"
    monkeypatch.delattr("torch.distributed.all_gather_single")
    present.cache_clear()
    assert present(name) == "torch.distributed:all_gather_into_tensor"
    require_supported()
    monkeypatch.undo()
    present.cache_clear()
    assert present(name) == name


def test_an_old_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CaptureError, match=r"^torch 2\.9\.1\+cpu .* needs 2\.10 or newer; install"):
        require_supported()


OLD = """
import pkgutil, torch
torch.__version__ = "2.9.1"
resolve = pkgutil.resolve_name  # torch itself needs the names, so they are only hidden
hidden = ("torch.fx.graph:_BoxedCodeGen", "torch.fx.traceback:annotate")
pkgutil.resolve_name = lambda name: None if name in hidden else resolve(name)
import planner
import planner.running.apply, planner.sharding.apply_sharded, planner.verification.verify
try:
    planner.fit(torch.nn.Linear(2, 2), "1GB", inputs=torch.zeros(1, 2))
except planner.CaptureError as error:
    print(error)
"""


def test_an_old_version_is_refused_when_a_step_is_captured_not_at_import() -> None:
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "torch 2.9.1 is installed, and capturing needs 2.10 or newer, and this one lacks what is "
        "needed for the module and the line that an op comes from; programs whose arguments die "
        "early; install another version\n"
    )
