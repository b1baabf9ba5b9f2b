"""The report as one HTML file that needs nothing else: the picture, then the text.

Knows how to put the timeline and the text on a page. Adds no facts of its own.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from planner.graphs.files import write_atomically
from planner.output.plan_text import render
from planner.output.timeline import render_timeline_svg
from planner.plan.single import Plan

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


def render_page(plan: Plan, text: str | None = None) -> str:
    """Return the report as HTML; its text is what ``str(plan)`` says unless another is given."""
    title = f"Memory plan for {plan.signature.get('model', 'a training step')}"
    return _PAGE.format(
        title=escape(title), picture=render_timeline_svg(plan), text=escape(text or render(plan))
    )


def write_page(plan: Plan, path: str | Path, text: str | None = None) -> None:
    """Write the report; the file appears whole or not at all."""
    write_atomically(path, render_page(plan, text))
