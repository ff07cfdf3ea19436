"""The tables of `objcrop stats`: on the screen, and for a report."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from objcrop.box_stats import MEANINGS
from objcrop.recall import FOUND


class Section(NamedTuple):
    """A table: a row a mean, a column each of what it is of.

    Attributes:
        title: of the rows.
        heads: of the columns.
        rows: by name, what is printed in each column.
        meanings: what some rows are, by name.
    """

    title: str
    heads: list[str]
    rows: dict[str, list[str]]
    meanings: dict[str, str]


def stats_lines(result: dict[str, Any]) -> list[str]:
    """Return what `stats` measured on, in sentences."""
    truth, measured = result["ground_truth"], result["catalog"]["measured"]
    of = {
        "by_masks": "by pixel masks",
        "by_boxes": "by the union of their boxes",
        "without": "left out: no ground truth",
    }
    sources = ", ".join(f"{truth[name]} {words}" for name, words in of.items() if truth[name])
    lines = [f"{measured} of {result['catalog']['images']} images measured: {sources}"]
    if truth["crowd_regions"]:
        lines.append(f"{truth['crowd_regions']} crowd regions count as object pixels, not as objects")
    if truth["difficult"]:
        lines.append(f"{truth['difficult']} difficult objects count, except in recall")
    return lines


def stats_sections(result: dict[str, Any]) -> list[Section]:
    """Return the tables of what `stats` returned: each mean with its 95 % interval."""
    crops = result["objectness"]
    names = ("object_share", "poor", "coarse", "precise", "area")
    sections = [_section("Objectness", list(crops), {n: [entry[n] for entry in crops.values()] for n in names})]
    if result["coverage"] is not None:
        means = {name: [entry] for name, entry in result["coverage"].items() if name in MEANINGS}
        sections.append(_section("Coverage", [result["crops"]["policy"]], means))
    if result["boxes"] is not None:
        means = {name: [entry] for name, entry in result["boxes"].items() if name in MEANINGS and entry is not None}
        sections.append(_section("Boxes", [result["made_by"]["method"]], means))
    if result["recall"] is not None:
        means = {f"{n} box{'es' * (n != '1')}": [*entry.values()] for n, entry in result["recall"].items()}
        sections.append(_section("Recall", [f"IoU ≥ {FOUND}", "best overlap"], means))
    return sections


def stats_table(result: dict[str, Any], console: Console) -> None:
    """Print what `stats` returned: each mean with its 95 % interval and what it is."""
    console.print("\n".join(stats_lines(result)), highlight=False)
    for section in stats_sections(result):
        _print(section, console)
        if section.title == "Boxes":
            for name, quartiles in (result["boxes"]["quartiles"] or {}).items():
                low, middle, high = (f"{q:.3g}" for q in quartiles)
                words = f"{MEANINGS[name][0]}: a quarter lies below {low}, half below {middle}, a quarter above {high}"
                console.print(words, highlight=False)


def _section(title: str, heads: list[str], means: dict[str, list[dict[str, Any]]]) -> Section:
    named = {name: MEANINGS.get(name, (name, "")) for name in means}
    rows = {named[n][0]: [_cell(entry, n in ("per_image", "aspect")) for entry in means[n]] for n in means}
    return Section(title, heads, rows, {short: meaning for short, meaning in named.values() if meaning})


def _print(section: Section, console: Console) -> None:
    """Print one table; what a row is stands beside, or below many columns."""
    beside = len(section.heads) == 1
    table = Table(box=None, pad_edge=False)
    table.add_column(section.title, no_wrap=True)
    for head in section.heads:
        table.add_column(head, justify="right", no_wrap=True)
    if beside:
        table.add_column("", style="dim")
    for name, cells in section.rows.items():
        table.add_row(name, *cells, *[section.meanings.get(name, "")] * beside)
    console.print("", table, sep="\n")
    for name, meaning in section.meanings.items() if not beside else ():
        console.print(f"{name}: {meaning}", style="dim", highlight=False)


def _cell(entry: dict[str, Any], plain: bool) -> str:
    """Return a mean and its interval, in percent unless `plain`."""
    if entry["mean"] is None:
        return "none"
    mean, low, high = (None if v is None else f"{v:.2f}" if plain else f"{100 * v:.1f}" for v in entry.values())
    return f"{mean}{'' if plain else ' %'}" + ("" if low is None else f" ({low}–{high})")
