"""A page to read in a browser: one HTML file, its style and pictures inside. Nothing is fetched, and nothing runs.

Whatever is put on it is text and is escaped, but for what these functions made themselves (`Html`).
"""

from __future__ import annotations

import base64
import html
import io
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #63636a; --line: #d9d9de; --box: #f4f4f6;
        --link: #0b57b0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #161618; --soft: #a2a2aa; --line: #38383e; --box: #222226; --link: #8ab8f0 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1, h2, h3, h4 { line-height: 1.25 }
h2 { margin-top: 2.5rem }
a { color: var(--link) }
.soft { color: var(--soft) }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; vertical-align: bottom }
td { white-space: nowrap }
.number { text-align: right }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper) }
td.long { min-width: 14rem; white-space: normal; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
pre { background: var(--box); padding: 1rem; overflow-x: auto; font-size: 13px; border-radius: 6px;
      overflow-wrap: normal }
details { margin: 1rem 0 }
summary { cursor: pointer }
@media (max-width: 40rem) {
  img { max-width: none }
  th:first-child, td:first-child { min-width: 8rem; white-space: normal; overflow-wrap: anywhere }
}
"""
LONG = 40  # characters; a column of text that holds more is set in several lines
READABLE = "36rem"  # of a picture that is wider than a phone
NUMBER = re.compile(r"[-+−(]?[\d.,]*\d")  # how a cell of a column of numbers begins


class Html(str):
    """A piece of a page; any other string is text."""


def text(value: object) -> Html:
    """Return text as a piece of a page; a piece stays as it is, None is nothing."""
    return value if isinstance(value, Html) else Html("" if value is None else html.escape(str(value)))


def page(title: str, *parts: str) -> str:
    """Return a whole page.

    Args:
        title: its name and first line.
        parts: pieces, and text that stands for a paragraph each.
    """
    inside = "\n".join(part if isinstance(part, Html) else paragraph(part) for part in parts if part)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>{STYLE}</style></head>
<body>
<h1>{text(title)}</h1>
{inside}
</body></html>
"""


def together(parts: Iterable[object]) -> Html:
    """Return pieces, one after the other."""
    return Html("\n".join(text(part) for part in parts))


def paragraph(words: object, soft: bool = False) -> Html:
    """Return a paragraph, of what stands in the second place if `soft`."""
    return Html(f'<p class="soft">{text(words)}</p>' if soft else f"<p>{text(words)}</p>")


def heading(words: object, level: int = 2, name: str | None = None) -> Html:
    """Return a heading, to which `link` leads where it has a name."""
    here = "" if name is None else f' id="{text(name)}"'
    return Html(f"<h{level}{here}>{text(words)}</h{level}>")


def link(words: object, name: str) -> Html:
    """Return a link to a heading of the page."""
    return Html(f'<a href="#{text(name)}">{text(words)}</a>')


def strong(value: object) -> Html:
    """Return a cell's content in bold."""
    return Html(f"<strong>{text(value)}</strong>")


def listing(texts: Iterable[str]) -> Html:
    """Return lines as they are, commands say."""
    return Html(f"<pre>{text(chr(10).join(texts))}</pre>")


def bullets(words: Iterable[object]) -> Html:
    """Return a list."""
    return Html("<ul>" + "".join(f"<li>{text(each)}</li>" for each in words) + "</ul>")


def folded(summary: object, *parts: object) -> Html:
    """Return what opens when its summary is clicked."""
    return Html(f"<details><summary>{text(summary)}</summary>\n{together(parts)}\n</details>")


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table, which scrolls within itself where the screen is narrower.

    A column but the first that holds nothing but numbers (or text that begins with one) and gaps is set to the right.

    Args:
        heads: of the columns.
        rows: cells, as many each.
    """
    cells = [[text(figure(value)) for value in row] for row in rows]
    kinds = []
    for place, column in enumerate(zip(*cells, strict=True)):
        plain = [re.sub("<[^>]*>", "", cell) for cell in column]
        if place and any(plain) and all(NUMBER.match(cell) for cell in plain if cell):
            kinds.append(' class="number"')
        else:
            kinds.append(' class="long"' if any(len(html.unescape(cell)) > LONG for cell in plain) else "")
    kinds = kinds or [""] * len(heads)
    head = "".join(
        f'<th scope="col"{kind if "number" in kind else ""}>{text(name)}</th>'
        for name, kind in zip(heads, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in cells
    )
    return Html(f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


def figure(value: object) -> object:
    """Return a number as it is read, to four digits, and a list with commas; anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(figure(each)) for each in value)
    return value


def picture(content: bytes, says: str) -> Html:
    """Return a picture, which scrolls within itself on a phone, lest it be too small to read.

    Args:
        content: a PNG.
        says: what is seen, for those who do not see it.

    Raises:
        ValueError: it is none.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise ValueError(f"{says}: no PNG")
    width, height = struct.unpack(">II", content[16:24])  # PNG specification, 11.2.2
    data = base64.b64encode(content).decode()
    return Html(
        f'<div class="wide"><img alt="{text(says)}" width="{width}" height="{height}" '
        f'style="width: min({width}px, max(100%, {READABLE}))" src="data:image/png;base64,{data}"></div>'
    )


def drawn(figure: Figure, says: str, dpi: int = 130) -> Html:
    """Return a matplotlib figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return picture(file.getvalue(), says)


def row_each(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return a table with a row an entry, and a column for whatever any of them holds."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    return table(names, [[row.get(name) for name in names] for row in rows])


def column_each(heads: Sequence[str], entries: Sequence[Mapping[str, Any]], title: str = "") -> Html:
    """Return a table with a column an entry, and a row for whatever any of them holds; `title` is above the rows."""
    names = list(dict.fromkeys(name for entry in entries for name, value in entry.items() if value is not None))
    return table([title, *heads], [[name, *(entry.get(name) for entry in entries)] for name in names])
