"""A plan in the words of another program, and what that one cannot say; each format is a file."""

from planner.output.exporters import (  # noqa: F401 (each enters itself)
    accelerate,
    deepspeed,
    fsdp2_script,
    own_formats,
)
from planner.output.exporters.exporter import EXPORTERS, Exporter, export, register_exporter

__all__ = ["EXPORTERS", "Exporter", "export", "register_exporter"]
