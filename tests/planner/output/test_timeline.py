"""The picture of a step: a golden file, and what must be seen in it whatever the step."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

from planner import render_timeline_svg
from planner.plans import Plan

Golden = Callable[[str, str], None]


def test_golden_picture(plan: Plan, golden: Golden) -> None:
    golden("timeline.svg", render_timeline_svg(plan))


def test_picture_is_xml_and_shows_every_peak(plan: Plan) -> None:
    root = ET.fromstring(render_timeline_svg(plan))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("plain: peak 247 MB", "planned: peak 147 MB", "budget: 148 MB", "backward"):
        assert expected in texts


def test_picture_never_loses_a_short_peak(plan: Plan) -> None:
    """An op that takes no time still shows its memory: the lowest y is that of the peak."""
    ops = tuple(
        replace(op, seconds=0.0 if op.name == "backward_3" else 1.0) for op in plan.graph.ops
    )
    instant = replace(plan, graph=replace(plan.graph, ops=ops))
    tops = []
    for picture in (plan, instant):
        paths = re.findall(r'<path d="([^"]*)"', render_timeline_svg(picture))
        tops.append([min(map(float, re.findall(r"V([\d.]+)", path))) for path in paths])
    assert tops[0] == tops[1]


def test_picture_of_a_step_without_times_counts_ops(plan: Plan) -> None:
    ops = tuple(replace(op, seconds=0.0) for op in plan.graph.ops)
    timeless = replace(plan, graph=replace(plan.graph, ops=ops), bound_seconds=0.0)
    assert "24 ops" in render_timeline_svg(timeless)
