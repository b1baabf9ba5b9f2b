"""The formats of this package: the plan file itself, its text, its picture, its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.graphs.files import write_atomically
from planner.output.exporters.exporter import AnyPlan, Exporter, register_exporter
from planner.output.page import report, step_of
from planner.output.saved_plans import save
from planner.output.text import text_of
from planner.output.timeline import render_timeline_svg
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan


def _format(name: str, write: Callable[[AnyPlan, Path], None]) -> None:
    def written(plan: AnyPlan, path: Path, plan_path: Path | None) -> tuple[str, ...]:
        del plan_path  # the file stands alone
        write(plan, path)
        return ()

    register_exporter(Exporter(name, (StepPlan, ShardedStepPlan), written))


_format("json", save)
_format("html", report)
_format("svg", lambda plan, path: write_atomically(path, render_timeline_svg(step_of(plan))))
_format("txt", lambda plan, path: write_atomically(path, text_of(plan)))
