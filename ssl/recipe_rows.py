"""The rows of the two papers: the number printed, and the recipe that trains for it.

`recipes/rows.csv` has a line a row, `recipes/needs.csv` one for each data set and kind of boxes that recipes name.
`objcrop recipes -o ssl/recipes/README.md` makes the page of all. OAC is "Object-Aware Cropping for Self-Supervised
Learning", CIB "Coarse Is Better".
"""

from __future__ import annotations

import csv
from typing import NamedTuple

from objcrop.ssl.training.recipe import FOLDER, name_of, needs_of, settings

ROWS = FOLDER / "rows.csv"
NEEDS = FOLDER / "needs.csv"
QUOTED = "quoted"  # in place of a recipe: the papers quote the number from elsewhere
NONE = "none: "  # the same, with what it takes instead

HEAD = """# Recipes

Made by `objcrop recipes -o ssl/recipes/README.md` from `rows.csv` and the recipes. A row is a number that one of the
two papers prints. What stands under "recipe" runs by `objcrop pretrain --recipe NAME --catalog CATALOG [--boxes BOXES]
--output RUN`; where "at" names a setting, `objcrop sweep NAME …` runs and tabulates all of them. A recipe's comments
say what its paper leaves open. `objcrop reproduce cib-table7 --data coco=CATALOG …` does all of a table, measures its
rows by the transfers in `transfers.csv`, and names the data below that are missing (`--dry-run`). "ours" is empty where
nobody has measured it.
"""


class Row(NamedTuple):
    """A published row, all text.

    Attributes:
        paper: "OAC" or "CIB".
        table: its number, or "text".
        row: in the table's words.
        published: the number.
        recipe: its name, or "quoted", or "none: …".
        at: the sweep's setting, as `name_of` writes it, or what else is to be done.
        ours: the number measured here.
    """

    paper: str
    table: str
    row: str
    published: str
    recipe: str
    at: str
    ours: str

    @property
    def trained(self) -> bool:
        """Whether there is a recipe."""
        return self.recipe != QUOTED and not self.recipe.startswith(NONE)


def rows() -> list[Row]:
    """Return the rows in the papers' order."""
    with ROWS.open(encoding="utf-8", newline="") as file:
        return [Row(**line) for line in csv.DictReader(file)]


def needed(kind: str) -> dict[str, tuple[str, str]]:
    """Return what recipes need of a kind, "data" or "boxes", by name: what it is, and the command that makes it."""
    with NEEDS.open(encoding="utf-8", newline="") as file:
        return {line["name"]: (line["says"], line["commands"]) for line in csv.DictReader(file) if line["kind"] == kind}


def recipe_page() -> str:
    """Return the page in Markdown."""
    parts = [HEAD, *_needed("Data", needed("data")), *_needed("Boxes", needed("boxes"))]
    before = ("", "")
    for row in rows():
        if row[:2] != before:
            title = f"Table {row.table}" if row.table[0].isdigit() else "Text, figures and appendices"
            parts += ["", f"## {row.paper}, {title}", "", "| row | published | ours | recipe | at | data | boxes |"]
            parts.append("|---|---|---|---|---|---|---|")
            before = row[:2]
        needs = needs_of(row.recipe) if row.trained else {}
        recipe = f"[{row.recipe}]({row.recipe}.yaml)" if row.trained else row.recipe
        wanted = (f"[{needs[kind]}](#{kind})" if kind in needs else "" for kind in ("data", "boxes"))
        parts.append("| " + " | ".join([row.row, row.published, row.ours, recipe, row.at, *wanted]) + " |")
    return "\n".join(parts) + "\n"


def _needed(title: str, known: dict[str, tuple[str, str]]) -> list[str]:
    parts = [f"## {title}", ""]
    for name, (says, command) in known.items():
        parts += [f"- **{name}**: {says}", *([f"  - `{command}`"] if command else [])]
    return [*parts, ""]


def recipe_lines() -> list[str]:
    """Return a line a recipe: its name, the settings of its sweep, and what it needs."""
    lines = []
    for path in sorted(FOLDER.glob("*.yaml")):
        needs = " on ".join(reversed([needs_of(path)[kind] for kind in ("data", "boxes") if kind in needs_of(path)]))
        tried = "; ".join(name_of(setting) for setting in settings(path))
        lines.append("  ".join(part for part in (path.stem, needs, tried) if part))
    return lines
