"""A table of the papers: its rows, the numbers printed in each, and by which transfer they are measured anew.

`recipes/rows.csv` has a line a row. `recipes/transfers.csv` has a line a transfer of a table, of all rows or of those
whose name holds the words under "rows"; of lines of one task, the first that fits a row counts. CIB does not say how
long it fine-tunes detectors on VOC2007 alone: as long as on VOC07+12 here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from objcrop.errors import UsageError, shown
from objcrop.ssl.recipe_rows import Row, rows
from objcrop.ssl.training.recipe import FOLDER

TRANSFERS = FOLDER / "transfers.csv"
PROBE = "probe"  # the task that `objcrop probe` is, beside those of `objcrop transfer`

# What each task measures: the papers' word for a number, and where it stands in ours, a share of 1.
FIGURES = {
    PROBE: {"mAP": "linear_batchwise_map_256", "linear mAP": "linear_map_11_point", "top-1": "linear_top1"},
    "classification": {"top-1": "top1", "fine-tuned mAP": "map_11_point"},
    "detection": {"box AP": "ap", "AP50": "ap50", "AP75": "ap75", "mask AP": "mask_ap"},
    "segmentation": {"Cityscapes mIoU": "miou", "mAcc": "mean_accuracy", "aAcc": "accuracy"},
}


# VOC2007's test by its own rule of 11 points, as Detectron2 has it.
VOC07 = {"box AP": "voc07_ap", "AP50": "voc07_ap50", "AP75": "voc07_ap75"}


class Transfer(NamedTuple):
    """A task that rows are measured by.

    Attributes:
        task: of `objcrop transfer`, or "probe".
        preset: its settings by name, "" for none.
        options: in place of what the preset says.
        train: data to learn from, a name in needs.csv.
        test: data to measure on.
    """

    task: str
    preset: str
    options: dict[str, Any]
    train: str
    test: str

    @property
    def figures(self) -> dict[str, str]:
        """What it measures, as in `FIGURES`."""
        return VOC07 if (self.task, self.test) == ("detection", "voc07-test") else FIGURES[self.task]


class Table(NamedTuple):
    """A table by its name, "oac-table6", with its rows."""

    name: str
    paper: str
    number: str
    rows: list[Row]

    @property
    def title(self) -> str:
        """Its name in words."""
        return f"{self.paper}, Table {self.number}"


def table_names() -> list[str]:
    """Return the names of the tables of which a transfer is known."""
    return [f"{paper.lower()}-table{number}" for paper, number in dict.fromkeys(line[:2] for line in _lines())]


def table_of(name: str, only: Sequence[str] = ()) -> Table:
    """Return a table.

    Args:
        name: "oac-table6", say.
        only: words; rows that hold none of them are left out, none for all rows.

    Raises:
        UsageError: there is no such table, no transfer of it is known, or no row holds the words.
    """
    found = re.fullmatch(r"(oac|cib)-table(\d+)", name)
    held = [row for row in rows() if found and (row.paper, row.table) == (found[1].upper(), found[2])]
    if not held:
        raise UsageError(f"{shown(name)} is no table of the two papers; take one of: {', '.join(table_names())}.")
    if name not in table_names():
        raise UsageError(
            f"how the rows of {name} are transferred is not known here; take one of: {', '.join(table_names())}."
        )
    chosen = [row for row in held if not only or any(words in row.row for words in only)]
    if not chosen:
        raise UsageError(f"no row of {name} holds {shown(list(only))}; they are: {'; '.join(row.row for row in held)}.")
    return Table(name, held[0].paper, held[0].table, chosen)


def transfers_of(row: Row) -> list[Transfer]:
    """Return what a row is measured by, one transfer a task."""
    found: dict[str, Transfer] = {}
    for paper, table, words, *transfer in _lines():
        if (paper, table) == (row.paper, row.table) and words in row.row:
            task, preset, options, train, test = transfer
            found.setdefault(task, Transfer(task, preset, yaml.safe_load(options) or {}, train, test))
    return list(found.values())


def published(row: Row) -> dict[str, float]:
    """Return the numbers that are printed in a row by what they are of: {"box AP": 38.2, "AP50": 58.9}."""
    found = {}
    for part in re.split("[,;]", row.published):
        printed = re.fullmatch(r"\s*(\S.*?) (\d+(?:\.\d+)?)(?: %)?\s*", part)
        if printed:
            found[printed[1]] = float(printed[2])
    return found


def _lines() -> list[tuple[str, ...]]:
    with TRANSFERS.open(encoding="utf-8", newline="") as file:
        return [tuple(line) for line in list(csv.reader(file))[1:]]
