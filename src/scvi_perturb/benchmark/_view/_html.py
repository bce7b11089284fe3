"""Pieces of a page: text made harmless, tables, and pictures inside the page itself."""

from __future__ import annotations

import base64
import html
from io import BytesIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

__all__ = ["bullets", "element", "folded", "page", "picture", "safe", "table"]

_STYLE: Final = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .8rem;
  border-top: 2px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p, li { max-width: 80ch; }
a { color: #0072b2; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .84rem; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 2px solid #999; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; }
table.words td { text-align: left; white-space: normal; min-width: 7rem; }
table.words th { text-align: left; }
tr.role td { font-weight: 600; color: #555; padding-top: .6rem; background: #fff; }
tr.replicate td { background: #f3f3f3; }
td.best .value { font-weight: 700; }
td.opponent { background: #fdf1dc; }
.minor { color: #666; font-size: .78rem; display: block; }
.note { background: #f6f8fa; border-left: 4px solid #0072b2; padding: .5rem .8rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.figures img { max-width: 100%; height: auto; border: 1px solid #eee; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; } }
"""
#: Dots an inch, and how many of them an inch of the page shows: sharp on dense screens.
_DOTS, _SHOWN = 120, 88


def safe(text: object) -> str:
    """Return text in which nothing is read as markup."""
    return html.escape(str(text), quote=True)


def element(tag: str, content: str, *, css: str = "") -> str:
    """Return an element around content that is markup already."""
    return f'<{tag} class="{css}">{content}</{tag}>' if css else f"<{tag}>{content}</{tag}>"


def bullets(lines: Sequence[str]) -> str:
    """Return plain lines as a list; nothing if there are none."""
    return element("ul", "".join(element("li", safe(line)) for line in lines)) if lines else ""


def folded(title: str, content: str) -> str:
    """Return content that opens when its title is clicked; nothing without content."""
    return element("details", element("summary", safe(title)) + content) if content else ""


def table(header: Sequence[str], rows: Sequence[str], *, css: str = "") -> str:
    """Return a table of plain headings and rows that are markup already."""
    top = element("tr", "".join(element("th", safe(word)) for word in header))
    body = element("thead", top) + element("tbody", "\n".join(rows))
    return element("div", element("table", body, css=css), css="wide")


def picture(figure: Figure, words: str) -> str:
    """Return a figure as a picture inside the page; `words` say what it shows."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS, pil_kwargs={"optimize": True})
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * _SHOWN)
    return f'<img alt="{safe(words)}" width="{width}" src="data:image/png;base64,{code}">'


def page(title: str, body: str) -> str:
    """Return a whole page that needs no other file."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
