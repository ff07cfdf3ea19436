"""The tables of `objcrop stats` on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from objcrop.box_stats import MEANINGS
from objcrop.recall import FOUND


def stats_table(result: dict[str, Any], console: Console) -> None:
    """Print what `stats` returned: each mean with its 95 % interval and what it is."""
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
    console.print("\n".join(lines), highlight=False)

    crops = result["objectness"]
    names = ("object_share", "poor", "coarse", "precise", "area")
    _section("Objectness", list(crops), {name: [entry[name] for entry in crops.values()] for name in names}, console)
    if result["coverage"] is not None:
        means = {name: [entry] for name, entry in result["coverage"].items() if name in MEANINGS}
        _section("Coverage", [result["crops"]["policy"]], means, console)
    if result["boxes"] is not None:
        means = {name: [entry] for name, entry in result["boxes"].items() if name in MEANINGS and entry is not None}
        _section("Boxes", [result["made_by"]["method"]], means, console)
        for name, quartiles in (result["boxes"]["quartiles"] or {}).items():
            low, middle, high = (f"{q:.3g}" for q in quartiles)
            words = f"{MEANINGS[name][0]}: a quarter lies below {low}, half below {middle}, a quarter above {high}"
            console.print(words, highlight=False)
    if result["recall"] is not None:
        means = {
            f"{budget} box{'es' * (budget != '1')}": [*entry.values()] for budget, entry in result["recall"].items()
        }
        _section("Recall", [f"IoU ≥ {FOUND}", "best overlap"], means, console)


def _section(title: str, heads: list[str], means: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print one table: a row a mean, a column each of `heads`; what it is stands beside, or below many columns."""
    beside = len(heads) == 1
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    if beside:
        table.add_column("", style="dim")
    below = []
    for name, entries in means.items():
        short, meaning = MEANINGS.get(name, (name, ""))
        cells = [_cell(entry, name in ("per_image", "aspect")) for entry in entries]
        table.add_row(short, *cells, *[meaning] * beside)
        below += [f"{short}: {meaning}"] * bool(meaning and not beside)
    console.print("", table, sep="\n")
    for line in below:
        console.print(line, style="dim", highlight=False)


def _cell(entry: dict[str, Any], plain: bool) -> str:
    """Return a mean and its interval, in percent unless `plain`."""
    if entry["mean"] is None:
        return "none"
    mean, low, high = (None if v is None else f"{v:.2f}" if plain else f"{100 * v:.1f}" for v in entry.values())
    return f"{mean}{'' if plain else ' %'}" + ("" if low is None else f" ({low}–{high})")
