"""The report as one HTML file that needs nothing else: the picture, then the text.

Knows how to put the timeline and the text on a page. Adds no facts of its own.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from planner.graphs.files import write_atomically
from planner.output.text import text_of
from planner.output.timeline import render_timeline_svg
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif }}
  svg {{ width: 100%; height: auto; border: 1px solid #d0d7de; border-radius: 6px }}
  pre {{ overflow-x: auto; padding: 1rem; background: #f6f8fa; border-radius: 6px }}
</style>
<h1>{title}</h1>
{picture}<pre>
{text}
</pre>
</html>
"""


def report(plan: StepPlan | ShardedStepPlan, path: str | Path) -> None:
    """Write a page: one device's memory over time, and the text; it appears whole or not at all."""
    write_atomically(path, render_page(step_of(plan), text_of(plan)))


def step_of(plan: StepPlan | ShardedStepPlan) -> StepPlan:
    """Return what is drawn of a plan: the step of one device."""
    return plan.step if isinstance(plan, ShardedStepPlan) else plan


def render_page(plan: StepPlan, text: str) -> str:
    """Return a picture of a plan and a text as HTML."""
    title = f"Memory plan for {plan.signature.get('model', 'a training step')}"
    return _PAGE.format(title=escape(title), picture=render_timeline_svg(plan), text=escape(text))


def render_notebook(plan: StepPlan, text: str) -> str:
    """Return a picture of a plan and a text as a piece of HTML, for the cell of a notebook."""
    return f"{render_timeline_svg(plan)}<pre>{escape(text)}</pre>"
