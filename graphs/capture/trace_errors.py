"""What torch raises while a step is traced, told with the user's line and what to do about it.

Knows the exceptions of fake tensors. Knows nothing of how a step is traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from planner.graphs.capture.guards.values import user_line
from planner.graphs.capture.placed import is_parallelized
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.fake_tensors import DATA_DEPENDENT, UnsupportedOperatorException
from planner.graphs.torch_api.refused import NotTracedWhole

_INSTEAD = {
    "_pack_padded_sequence": "a packed sequence is as long as its lengths add up to: give the "
    "recurrent layer the padded batch and mask what it returns",
    "nonzero": "a boolean index takes as many values as are true: choose with torch.where, or "
    "multiply by the mask",
    "masked_select": "it takes as many values as are true: multiply by the mask instead",
}
"""What to do without operators whose results are as large as their data say."""
_OVER_RANKS = (
    "send equally many rows to every rank; or where a router decides how many, let transformers "
    'send them (DistributedConfig(ep_implementation="all_to_all")), whose layers are planned with '
    "memory for capacity_factor= times the even share"
)
_OTHERWISE = (
    "compute it outside the model, or choose an implementation without data-dependent shapes"
)


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Turn what torch raises while tracing into a ``CaptureError`` that names the user's line."""
    name = type(model).__name__
    try:
        yield
    except CaptureError:
        raise
    except DATA_DEPENDENT as error:
        raise _needs_data(model, error) from error
    except UnsupportedOperatorException as error:
        raise CaptureError(
            f"{name}: {_where(error)} calls {error}, which has no fake-tensor implementation; "
            "register one with torch.library.register_fake"
        ) from error
    except NotTracedWhole as error:
        raise CaptureError(
            f"{name}: {_where(error)} calls an operator around a function of its own (scan, map), "
            "which a plan cannot run: write the loop in Python"
        ) from error
    except NotImplementedError as error:
        raise CaptureError(
            f"{name}: {_where(error)} cannot be captured: {_first_line(error)}"
        ) from error
    except RuntimeError as error:
        if _LISTED in str(error):
            raise _needs_data(model, error) from error
        raise _fails(name, error) from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise _fails(name, error) from error
    except AssertionError as error:
        raise CaptureError(
            f"{name}: {_where(error)} cannot be captured: {_first_line(error)}"
        ) from error


_LISTED = ".tolist() is not supported for tensor subclasses"


def _needs_data(model: nn.Module, error: Exception) -> CaptureError:
    """Say which line asks for the value of a tensor, and what to do without."""
    experts = any("expert" in type(m).__name__.lower() for m in model.modules())
    advice = ' (for experts in transformers: experts_implementation="grouped_mm")' * experts
    cause = _first_line(error)
    known = (text for op, text in _INSTEAD.items() if op in cause)
    otherwise = _OVER_RANKS if is_parallelized(model) else _OTHERWISE
    return CaptureError(
        f"{type(model).__name__}: {_where(error)} needs the value of a tensor, which capturing "
        f"cannot know ({cause}); {next(known, otherwise)}{advice}"
    )


def _fails(name: str, error: Exception) -> CaptureError:
    return CaptureError(
        f"{name}: {_where(error)} fails while it is captured: {type(error).__name__}: "
        f"{_first_line(error)}; if the model and its backward run without a plan, this line "
        f"does what cannot be traced{_inside_a_function(error)}"
    )


def _inside_a_function(error: BaseException) -> str:
    """Say what to do where the backward of somebody's autograd Function fails."""
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_name == "backward" and "ctx" in code.co_varnames[: code.co_argcount]:
            return (
                ": a Function that runs modules again in its backward is better a "
                "torch.utils.checkpoint with use_reentrant=False"
            )
        step = step.tb_next
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _where(error: BaseException) -> str:
    """Return the innermost line of the traceback that is the user's own."""
    found, step = "", error.__traceback__
    while step is not None:
        line = user_line(step.tb_frame, step.tb_lineno, walk=False)
        found, step = line or found, step.tb_next
    return found or "the model"
