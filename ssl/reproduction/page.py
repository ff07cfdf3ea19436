"""A reproduced table to read: in Markdown, and as one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.ssl.training.run_folder import read_metrics

TINY = (
    "In miniature: drawn scenes, tiny networks, two steps each. The numbers say that every stage works, nothing else."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #6b6b70; --line: #d9d9de; --box: #f4f4f6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #161618; --soft: #9a9aa2; --line: #38383e; --box: #222226 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child, td.why { text-align: left }
td:first-child { min-width: 11rem }
td.why { color: var(--soft); font-size: .85rem; min-width: 12rem; overflow-wrap: anywhere }
.ours { font-weight: 600 }
img { max-width: 100%; background: #fff; border-radius: 6px }
pre { background: var(--box); padding: 1rem; overflow-x: auto; font-size: 13px; border-radius: 6px }
summary { cursor: pointer }
"""


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table as Markdown; `result` is what `reproduce` returns."""
    words = _measures(result)
    head = ["row", *(f"{word}, {whose}" for word in words for whose in ("paper", "ours")), "state"]
    lines = [f"# {result['title']}", "", *([TINY, ""] if result["tiny"] else [])]
    lines += [_line(head), _line(["---"] + ["---:"] * (len(head) - 2) + ["---"])]
    for row in result["rows"]:
        numbers = [_number(row[whose].get(word)) for word in words for whose in ("published", "ours")]
        lines.append(_line([row["row"], *numbers, _state(row)]))
    lines += ["", "## Data", "", _line(["name", "images", "file", "the paper's"]), _line(["---", "---:", "---", "---"])]
    for name, given in result["data"].items():
        lines.append(_line([name, _number(given["images"]), f"`{given['file']}`", given["says"]]))
    lines += ["", "## Commands", "", "```", *(stage["command"] for stage in result["stages"]), "```"]
    return "\n".join(lines) + "\n"


def html_page(result: Mapping[str, Any]) -> str:
    """Return a table as a page; `result` is what `reproduce` returns."""
    words, title = _measures(result), html.escape(result["title"])
    head = "".join(f'<th colspan="2">{html.escape(word)}</th>' for word in words)
    under = "<th>paper</th><th>ours</th>" * len(words)
    rows = "".join(
        f"<tr><td>{html.escape(row['row'])}</td>"
        + "".join(
            f'<td>{_number(row["published"].get(word))}</td><td class="ours">{_number(row["ours"].get(word))}</td>'
            for word in words
        )
        + f'<td class="why">{html.escape(_state(row))}</td></tr>'
        for row in result["rows"]
    )
    data = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_number(given['images'])}</td>"
        f'<td class="why">{html.escape(given["file"])}</td><td class="why">{html.escape(given["says"])}</td></tr>'
        for name, given in result["data"].items()
    )
    commands = html.escape("\n".join(stage["command"] for stage in result["stages"]))
    seconds = sum(stage["seconds"] or 0 for stage in result["stages"])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style>
<h1>{title}</h1>
<p>{f"{TINY} " if result["tiny"] else ""}The paper's numbers, and what objcrop {result["objcrop"]} measured in
{seconds / 3600:.1f} hours of work.</p>
<div class="wide"><table>
<thead><tr><th>row</th>{head}<th></th></tr><tr><th></th>{under}<th></th></tr></thead>
<tbody>{rows}</tbody></table></div>
{_compared(result, words)}{_curves(result)}{_pictures(result)}
<h2>Data</h2>
<div class="wide"><table><thead><tr><th>name</th><th>images</th><th></th><th></th></tr></thead>
<tbody>{data}</tbody></table></div>
<h2>Commands</h2>
<pre>{commands}</pre>
</html>
"""


def _measures(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(word for row in result["rows"] for word in row["published"]))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _state(row: Mapping[str, Any]) -> str:
    return f"{row['state']}: {row['why']}" if row["why"] else row["state"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _compared(result: Mapping[str, Any], words: list[str]) -> str:
    """Return a picture of the first number that was measured: the paper's of each row, and ours."""
    word = next((word for word in words if any(word in row["ours"] for row in result["rows"])), None)
    if word is None:
        return ""
    Figure = from_extra("matplotlib.figure").Figure

    rows = [row for row in result["rows"] if word in row["published"]][::-1]
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for whose, mark, colour in (("published", "o", "#8a8a92"), ("ours", "D", "#1f6fb2")):
        held = [(row[whose][word], place) for place, row in enumerate(rows) if word in row[whose]]
        axes.plot(*zip(*held), mark, color=colour, label="paper" if whose == "published" else "ours")
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.set(xlabel=word, ylim=(-0.7, len(rows) - 0.3))
    axes.grid(axis="y", color="#e4e4e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return _figure(figure, f"{word} of each row, the paper's and ours")


def _curves(result: Mapping[str, Any]) -> str:
    """Return a picture of the loss of all pretraining runs."""
    curves = {}
    for run in dict.fromkeys(row["run"] for row in result["rows"] if row["run"]):
        with contextlib.suppress(ObjcropError, KeyError):  # not begun, or broken off in its first line
            lines = read_metrics(Path(run) / "metrics.jsonl")
            curves[Path(run).name.rpartition("-")[0]] = [(line["step"], line["loss"]) for line in lines]
    if not any(curves.values()):
        return ""
    Figure = from_extra("matplotlib.figure").Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(*zip(*curve), marker="." if len(curve) < 10 else "", linewidth=1.2, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return "<h2>Pretraining</h2>" + _figure(figure, "loss of every pretraining run")


def _pictures(result: Mapping[str, Any]) -> str:
    """Return what transfers drew, to be opened row by row."""
    parts = []
    for row in result["rows"]:
        files = [file for folder in row["measured"] for file in sorted(Path(folder).glob("*.png"))]
        inside = "".join(_image(file.read_bytes(), f"{file.stem} of {row['row']}") for file in files)
        if inside:
            parts.append(f"<details><summary>{html.escape(row['row'])}</summary>{inside}</details>")
    return "<h2>Transfer</h2>" + "".join(parts) if parts else ""


def _figure(figure: Any, says: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return _image(file.getvalue(), says)


def _image(content: bytes, says: str) -> str:
    return f'<p><img alt="{html.escape(says)}" src="data:image/png;base64,{base64.b64encode(content).decode()}"></p>'
