"""A reproduced table to read: in Markdown, and as one HTML page with its pictures inside."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.page import drawn, folded, heading, listing, page, picture, strong, table, together
from objcrop.ssl.training.plot_run import curves_figure
from objcrop.ssl.training.run_folder import read_metrics

TINY = (
    "In miniature: drawn scenes, tiny networks, two steps each. The numbers say that every stage works, nothing else."
)


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
    words = _measures(result)
    seconds = sum(stage["seconds"] or 0 for stage in result["stages"])
    says = f"The paper's numbers, and what objcrop {result['objcrop']} measured in {seconds / 3600:.1f} hours of work."
    heads = ["row", *(f"{word}, {whose}" for word in words for whose in ("paper", "ours")), ""]
    rows = []
    for row in result["rows"]:
        pairs = [(_number(row["published"].get(word)), strong(_number(row["ours"].get(word)))) for word in words]
        rows.append([row["row"], *(cell for pair in pairs for cell in pair), _state(row)])
    data = [[name, given["images"], given["file"], given["says"]] for name, given in result["data"].items()]
    return page(
        result["title"],
        f"{TINY} {says}" if result["tiny"] else says,
        table(heads, rows),
        _compared(result, words),
        _curves(result),
        _pictures(result),
        heading("Data"),
        table(["name", "images", "file", ""], data),
        heading("Commands"),
        listing(stage["command"] for stage in result["stages"]),
    )


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
    return drawn(figure, f"{word} of each row, the paper's and ours")


def _curves(result: Mapping[str, Any]) -> str:
    """Return a picture of the curves of all pretraining runs."""
    curves = {}
    for run in dict.fromkeys(row["run"] for row in result["rows"] if row["run"]):
        with contextlib.suppress(ObjcropError):  # not begun, or broken off in its first line
            curves[Path(run).name.rpartition("-")[0]] = read_metrics(Path(run) / "metrics.jsonl")
    if not any(curves.values()):
        return ""
    return together([heading("Pretraining"), drawn(curves_figure(curves), "curves of every pretraining run", dpi=110)])


def _pictures(result: Mapping[str, Any]) -> str:
    """Return what transfers drew, to be opened row by row."""
    parts = []
    for row in result["rows"]:
        files = [file for folder in row["measured"] for file in sorted(Path(folder).glob("*.png"))]
        if files:
            drawings = (picture(file.read_bytes(), f"{file.stem} of {row['row']}") for file in files)
            parts.append(folded(row["row"], *drawings))
    return together([heading("Transfer"), *parts]) if parts else ""
