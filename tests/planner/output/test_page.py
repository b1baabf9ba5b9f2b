"""The report as a page: picture and text in one file that needs no other."""

import re
from dataclasses import replace
from pathlib import Path

from planner import render_timeline_svg
from planner.output.page import render_page
from planner.plans import Plan


def test_page_holds_everything_and_escapes(plan: Plan, tmp_path: Path) -> None:
    odd = replace(plan, signature={"model": "<Toy & Co>"})
    odd.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page == render_page(odd, str(odd))
    assert "&lt;Toy &amp; Co&gt;" in page
    assert "<Toy" not in page
    assert render_timeline_svg(odd) in page
    assert not re.search(r'(src|href)="', page)  # self-contained
