"""What a capture changes in the process is put back on every path, and seen by one thread alone."""

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._functorch import aot_autograd
from torch._higher_order_ops.effects import _get_effect
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx import traceback as fx_traceback
from torch.fx.node import _side_effectful_functions
from torch.nn.modules import module as every_module
from torch.optim.optimizer import _foreach_supported_types

from planner.graphs.capture import trace
from planner.graphs.capture.call_arguments import arguments
from planner.graphs.capture.optimizer_step import optimizer_step
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api import decompositions, fake_kernels, patches, quiet
from planner.graphs.torch_api.module_watch import watch_attributes, watch_forwards
from planner.graphs.torch_api.patches import Patches, capturing, patching

CHECK = torch.ops.aten._linalg_check_errors.default


def process() -> dict[str, Any]:
    """Return all that is changed, as it is now; equal to itself later if it was put back."""
    packets = [getattr(torch.ops.aten, name) for name in dir(torch.ops.aten)]
    packets = [p for p in packets if isinstance(p, torch._ops.OpOverloadPacket)]
    overloads = [getattr(p, name) for p in packets for name in p.overloads()]
    return {
        "attributes": vars(nn.Module).get("__getattribute__"),
        "compositions": dict(decomposition_table),
        "fakes": dict(op_implementations_dict),
        "kernels": {op: dict(op.py_kernels) for op in overloads},
        "hooks": (
            dict(every_module._global_forward_pre_hooks),
            dict(every_module._global_forward_hooks),
            dict(every_module._global_forward_hooks_always_called),
        ),
        "lists": FunctionalTensor.tolist,
        "foreach": list(_foreach_supported_types),
        "filters": (list(warnings.filters), set(quiet._OfSilentThreads.threads)),
        "log": list(logging.getLogger("torch._subclasses.fake_tensor").filters),
        "generators": aot_autograd.preserve_rng_state,
        "checks": (_get_effect(CHECK), CHECK in _side_effectful_functions),
        "notes": (fx_traceback.should_preserve_node_meta, dict(fx_traceback.current_meta)),
        "modes": torch._C._len_torch_function_stack(),
        "free": patches._LOCK.acquire(blocking=False) and patches._LOCK.release(),
    }


class Raising(nn.Module):
    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), Broken(error))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x)
        return made.sum()


class Broken(nn.Module):
    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return x * 2


def captured(error: BaseException | None = None) -> None:
    trace.trace(Raising(error), arguments((torch.zeros(3, 2),), {}))


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported() -> None:
    """Capture once: torch registers some of its operators' pieces when they are first needed."""
    captured()
    optimizer_step([torch.empty(2, device="meta")], "adamw")


ERRORS = [RuntimeError("no"), CaptureError("no"), KeyboardInterrupt(), SystemExit(), OSError("no")]


@pytest.mark.parametrize("error", [None, *ERRORS], ids=lambda e: type(e).__name__)
def test_a_capture_that_fails_halfway_leaves_nothing_behind(error: BaseException | None) -> None:
    before = process()
    if error is None:
        captured()
    else:
        kind = CaptureError if isinstance(error, RuntimeError) else type(error)
        with pytest.raises(kind):
            captured(error)
    assert process() == before


PIECES = ["silence_warnings", "leave_generators_alone", "lenient_kernels", "eager_pieces"]
PIECES += [
    "let_lists_be_asked_for",
    "refuse_what_cannot_be_traced",
    "preserve_node_meta",
    "watch_forwards",
    "watched_reads",
]


@pytest.mark.parametrize("name", PIECES)
def test_a_capture_that_cannot_begin_leaves_nothing_behind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    before = process()
    monkeypatch.setattr(trace, name, fails)
    with pytest.raises(KeyboardInterrupt):
        captured()
    assert process() == before


def test_an_optimizer_that_fails_leaves_nothing_behind() -> None:
    def fails(parameters: list[Tensor]) -> torch.optim.Optimizer:
        raise KeyboardInterrupt

    before = process()
    with pytest.raises(KeyboardInterrupt):
        optimizer_step([torch.empty(2, device="meta")], fails)
    assert process() == before


def patched() -> None:
    """Change all that a capture changes, and put it back."""
    with patching() as made:
        quiet.silence_warnings(made)
        quiet.silence_fake_tensors(made)
        trace.leave_generators_alone(made)
        fake_kernels.lenient_kernels(made)
        decompositions.eager_pieces(made)
        trace.let_lists_be_asked_for(made)
        watch_forwards(made, lambda module: None, lambda module: None)
        watch_attributes(made, nn.Module, lambda module, name, value: None, None)


FOLDER = str(Path(patches.__file__).parent)
COUNTED = {"_python_versions"}  # looks at every operator, and changes none


def interrupted_at(line: int) -> int:
    """Run ``patched`` and interrupt it once, at its n-th line; return how many lines there were."""
    seen = 0

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return local

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        ours = frame.f_code.co_filename.startswith(FOLDER)
        return local if ours and frame.f_code.co_name not in COUNTED else None

    tracer = sys.gettrace()
    sys.settrace(enter)
    try:
        patched()
    except KeyboardInterrupt:
        assert line
    finally:
        sys.settrace(tracer)
    return seen


def test_an_interrupt_at_any_line_leaves_nothing_behind() -> None:
    patched()
    before = process()
    total = interrupted_at(0)
    assert total > 1000
    lines = {*range(1, 100), *range(100, total - 800, 97), *range(total - 800, total, 3)}
    for line in sorted(lines):
        interrupted_at(line)
        assert process() == before, f"line {line} of {total}"


def test_what_other_threads_do_with_modules_is_not_watched() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2)), list[str]()

    def call(name: str) -> None:
        before = len(seen)
        model(torch.zeros(1, 2))
        assert (len(seen) > before) == (name == "mine"), name

    with patching() as made:
        watch_forwards(made, lambda m: seen.append("into"), lambda m: seen.append("out of"))
        watch_attributes(made, nn.Module, lambda module, name, value: seen.append(name), None)
        call("mine")
        in_a_thread(lambda: call("another's"))
    assert {"into", "out of", "_forward_hooks"} <= set(seen)


def test_warnings_and_logs_of_other_threads_are_not_silenced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")

    def speak(name: str) -> None:
        warnings.warn(name, stacklevel=1)
        log.warning(name)

    with warnings.catch_warnings(record=True) as seen, patching() as made:
        warnings.simplefilter("always")
        quiet.silence_warnings(made)
        quiet.silence_fake_tensors(made)
        speak("mine")
        in_a_thread(lambda: speak("another's"))
    assert [str(w.message) for w in seen] == caplog.messages == ["another's"]


def test_a_thread_waits_for_the_one_that_captures() -> None:
    order: list[str] = []

    def other() -> None:
        with capturing():
            order.append("another's")

    thread = threading.Thread(target=other)
    with capturing(), capturing():
        thread.start()
        thread.join(0.1)
        order.append("mine")
    thread.join()
    assert order == ["mine", "another's"]


def test_a_capture_draws_no_numbers_and_rewinds_none() -> None:
    by_others = SimpleQueue[Tensor]()  # what lies in it is no state that a capture undoes
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), Calling(lambda: drawing(by_others)))
    torch.manual_seed(4)
    trace.trace(model, arguments((torch.zeros(3, 2),), {}), loss=torch.sum)
    drawn = [by_others.get() for _ in range(by_others.qsize())] + [torch.rand(1)]
    torch.manual_seed(4)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(1) for _ in drawn]))
    assert len(drawn) > 1


def test_a_model_that_seeds_the_generators_is_rewound() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Calling(lambda: torch.default_generator.manual_seed(5)))
    torch.manual_seed(4)
    state = torch.get_rng_state()
    trace.trace(model, arguments((torch.zeros(3, 2),), {}), loss=torch.sum)
    assert torch.equal(torch.get_rng_state(), state)


class Calling(nn.Module):
    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        self.function()
        return x * 1


def drawing(drawn: SimpleQueue[Tensor]) -> None:
    """Draw in another thread, which waits while the model runs."""
    in_a_thread(lambda: drawn.put(torch.rand(1)))


def in_a_thread(work: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_patches_of_patches_are_undone_last_first() -> None:
    class Table:
        size = 3

    class Smaller(Table):
        pass

    entries, items = {"a": 1}, [1]
    with patching() as outer:
        outer.attribute(Smaller, "size", 4)
        outer.entry(entries, "a", 2)
        outer.entry(entries, "b", 2)
        outer.member(items, 2)
        with patching() as inner:
            inner.attribute(Smaller, "size", 5)
            inner.without(entries, "a")
            inner.without(entries, "c")
            inner.member(items, 2)
            assert (Smaller.size, entries, items) == (5, {"b": 2}, [1, 2])
        assert (Smaller.size, entries, items) == (4, {"a": 2, "b": 2}, [1, 2])
    assert (Smaller.size, entries, items) == (3, {"a": 1}, [1])
    assert "size" not in vars(Smaller)


def test_an_interrupt_while_undoing_is_raised_when_all_is_undone() -> None:
    done: list[str] = []

    def interrupted() -> None:
        done.append("once")
        if len(done) == 1:
            raise KeyboardInterrupt

    made = Patches()
    made.on_undo(lambda: done.append("last"))
    made.on_undo(interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.undo()
    assert done == ["once", "once", "last"]
