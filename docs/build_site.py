"""Build the documentation: ``make docs`` writes the pages and the API reference to build/docs.

The reference is made by pdoc from the docstrings, the pages from the Markdown of this folder and
the README. Warnings of pdoc are errors here, and so are a page that is not listed and a link that
leads nowhere.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pdoc
from pdoc.render_helpers import to_html

import planner

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
README = ROOT / "README.md"
PAGES = (
    "how_it_works.md",
    "architecture.md",
    "results.md",
    "limits.md",
    "what_forward_may_do.md",
    "howto/out_of_memory.md",
    "howto/loss_in_chunks.md",
    "howto/offload.md",
    "howto/one_large_linear.md",
    "howto/in_your_trainer.md",
    "howto/for_a_card_elsewhere.md",
    "howto/choosing_a_batch.md",
    "howto/every_size.md",
    "howto/reading_a_plan.md",
    "howto/compile.md",
    "howto/fsdp2.md",
    "howto/tensor_parallel.md",
    "howto/exporting.md",
    "sharding.md",
    "devices.md",
)
"""In the order in which the site lists them."""
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that lie beside the README."""
MODULES = (
    "planner",
    *(f"planner.{name}" for name in ("plan.step_plan", "plan.sharded_step_plan")),
    *(f"planner.{name}" for name in ("plan.strategy", "running.engines", "output.exporters")),
    *(f"planner.graphs.{name}" for name in ("schedule", "memory", "costs", "hardware.columns")),
    *(f"planner.graphs.capture.{name}" for name in ("target", "rewrites")),
    *("planner.graphs", "planner.solvers"),
)
"""What users import, then what extensions register with."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; display: flex; color: #1f2328; }
nav { flex: 0 0 15rem; padding: 1.5rem; background: #f6f8fa; min-height: 100vh; }
nav a { display: block; margin: 0.3rem 0; }
main { padding: 1.5rem 2.5rem; max-width: 56rem; min-width: 0; }
a { color: #1f5fbf; text-decoration: none; }
img { max-width: 100%; }
pre { background: #f6f8fa; padding: 0.8rem; overflow-x: auto; font-size: 13px; }
code { font-size: 0.92em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid #d0d7de; padding: 0.25rem 0.6rem; text-align: left; }
"""
LINK = re.compile(r'((?:href|src)=")([^"#:]+)((?:#[^"]*)?")')


class BrokenSite(Exception):
    """A page is not listed, or a link leads nowhere."""


def build(target: Path) -> None:
    """Write the site into a folder, which is emptied first.

    Raises:
        BrokenSite: a page of ``docs/`` is not in ``PAGES``, or a link leads nowhere.
    """
    _check_listed()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _reference(target / "api")
    for picture in DOCS.glob("*.svg"):
        shutil.copy(picture, target)
    _page(README, target / "index.html", to_root="")
    for name in PAGES:
        to_root = "../" * name.count("/")
        _page(DOCS / name, (target / name).with_suffix(".html"), to_root=to_root)
    for name in BESIDE:
        _page(ROOT / name, (target / name).with_suffix(".html"), to_root="")
    if broken := sorted(_broken(target)):
        raise BrokenSite("links that lead nowhere:\n  " + "\n  ".join(broken))


def _check_listed() -> None:
    found = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    if found != set(PAGES):
        raise BrokenSite(f"docs and PAGES differ: {', '.join(sorted(found ^ set(PAGES)))}")


def _reference(target: Path) -> None:
    for function in (getattr(planner, name) for name in planner.__all__):
        if hasattr(function, "__signature__"):
            _as_written(function)
    pdoc.render.configure(docformat="google", template_directory=DOCS / "templates", search=False)
    pdoc.pdoc(*MODULES, "!planner.fit", output_directory=target)


class _Written:
    """An annotation that is shown as it was written, not looked up."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _as_written(function: Any) -> None:
    """Show the annotations that ``planner.request.takes`` adds: names of another module."""
    signature = inspect.signature(function)
    parameters = [
        p.replace(annotation=_Written(p.annotation)) if isinstance(p.annotation, str) else p
        for p in signature.parameters.values()
    ]
    function.__signature__ = signature.replace(parameters=parameters)


def _page(source: Path, target: Path, *, to_root: str) -> None:
    text = source.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    assert title is not None, f"{source} has no title"
    names = [(name, _title(DOCS / name)) for name in PAGES]
    names += [(name, _title(ROOT / name)) for name in BESIDE]
    links = [f'<a href="{to_root}index.html">What it is</a>']
    links += [f'<a href="{to_root}{Path(n).with_suffix(".html")}">{t}</a>' for n, t in names]
    links += [f'<a href="{to_root}api/index.html">API reference</a>']
    body = LINK.sub(lambda link: _on_the_site(link, source, to_root), str(to_html(text)))
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title[1]}</title>'
        f"<style>{STYLE}</style></head><body><nav>{''.join(links)}</nav><main>{body}</main></body>"
        "</html>\n",
        encoding="utf-8",
    )


def _title(source: Path) -> str:
    return source.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _on_the_site(link: re.Match[str], source: Path, to_root: str) -> str:
    """Lead from where a file is in the checkout to where it is on the site."""
    meant = (source.parent / unescape(link[2])).resolve()
    inside = meant.relative_to(DOCS if meant.is_relative_to(DOCS) else ROOT)
    path = "index.html" if meant == README else re.sub(r"\.md$", ".html", inside.as_posix())
    return f"{link[1]}{to_root}{path}{link[3]}"


def _broken(site: Path) -> Iterator[str]:
    for page in site.rglob("*.html"):
        if "api" in page.relative_to(site).parts:
            continue
        for link in LINK.finditer(page.read_text(encoding="utf-8")):
            if not (page.parent / unescape(link[2])).exists():
                yield f"{page.relative_to(site)}: {link[2]}"


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}/index.html")
