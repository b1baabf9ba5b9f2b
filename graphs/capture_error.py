"""The one error that capturing a model can end in."""

from __future__ import annotations


class CaptureError(ValueError):
    """The model cannot be captured; the message names the line and what to change."""
