"""The picture of a curve: a golden file, and everything it names."""

import xml.etree.ElementTree as ET
from collections.abc import Callable

import planner
from planner.analysis.curve import Curve

Golden = Callable[[str, str], None]
SVG = "{http://www.w3.org/2000/svg}"


def test_golden_curve(curve: Curve, golden: Golden) -> None:
    golden("curve.svg", planner.render_curve_svg(curve))


def test_the_picture_names_everything(curve: Curve) -> None:
    root = ET.fromstring(planner.render_curve_svg(curve))
    texts = " ".join(node.text or "" for node in root.iter(f"{SVG}text"))
    for word in ("planned", "proved impossible", "budget", "extra time", "MB", "%", *curve.rivals):
        assert word in texts
    assert len(list(root.iter(f"{SVG}circle"))) == len(curve.points)
