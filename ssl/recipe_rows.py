"""The rows of the two papers: the number printed, and the recipe that trains for it.

`recipes/rows.csv` has a line a row. `objcrop recipes -o ssl/recipes/README.md` makes the page of all; OAC is
"Object-Aware Cropping for Self-Supervised Learning", CIB "Coarse Is Better".
"""

from __future__ import annotations

import csv
from typing import NamedTuple

from objcrop.ssl.training.recipe import FOLDER, needs_of, settings
from objcrop.ssl.training.sweep import name_of

ROWS = FOLDER / "rows.csv"
QUOTED = "quoted"  # in place of a recipe: the papers quote the number from elsewhere
NONE = "none: "  # the same, with what it takes instead

# What recipes need, by the names in them: what it is, and the commands that make it.
DATA = {
    "voc07": (
        "VOC2007 trainval, 5,011 images",
        "objcrop index VOCdevkit/VOC2007 --format voc --annotations VOCdevkit/VOC2007/ImageSets/Main/trainval.txt "
        "-o voc07.arrow",
    ),
    "coco": (
        "COCO train2017, 118,287 images",
        "objcrop index annotations/instances_train2017.json --format coco --root train2017 -o coco.arrow",
    ),
    "openimages-subset": (
        "OAC's subset of OpenImages, 212,753 images; `objcrop index` does not read OpenImages yet",
        "",
    ),
    "openimages": (
        "all of OpenImages, 1.9 million images, as a folder",
        "objcrop index openimages -o openimages.arrow",
    ),
    "imagenet": ("ImageNet train, 1.28 million images", "objcrop index imagenet/train -o imagenet.arrow"),
    "imagenet-100": (
        "100 images of each of ImageNet's classes (IN100 in CIB), in a folder of their own",
        "objcrop index imagenet-100 -o imagenet-100.arrow",
    ),
}
_ANCHORS = "objcrop propose CATALOG --method anchors --model {} --count {} -o BOXES"
_FIRST = "objcrop pretrain --recipe {} --catalog CATALOG --output runs/first"
BOXES = {
    "gt": ("ground truth", "objcrop propose CATALOG --method gt -o BOXES"),
    "gt-pad": ("ground truth, padded", "objcrop propose CATALOG --method gt-pad -o BOXES"),
    "poor": ("boxes with little object in them", "objcrop propose CATALOG --method poor -o BOXES"),
    "grid": ("2 + 3 cells of a grid", "objcrop propose CATALOG --method grid -o BOXES"),
    "random": ("5 random boxes", "objcrop propose CATALOG --method random --count 5 -o BOXES"),
    "bing": ("10 of BING", "objcrop propose CATALOG --method bing --count 10 -o BOXES"),
    "edge-boxes": ("10 of EdgeBoxes", "objcrop propose CATALOG --method edge-boxes --count 10 -o BOXES"),
    "edge-boxes-5": ("5 of EdgeBoxes", "objcrop propose CATALOG --method edge-boxes --count 5 -o BOXES"),
    "selective-search": (
        "5 of Selective Search",
        "objcrop propose CATALOG --method selective-search --count 5 -o BOXES",
    ),
    "discovery": (
        "10 of unsupervised discovery (Vo et al. 2019); it keeps 8 kB a pair of images, 85 GB for 212,753 images at 50 "
        "pairs each: `--neighbours 5` takes a tenth, OAC does not say",
        "objcrop propose CATALOG --method discovery --count 10 -o BOXES",
    ),
    "anchors-voc07": (
        "5 of CIB's own method, scored by a first run on whole images",
        f"{_FIRST.format('cib-table1-moco-v2-image')}\n{_ANCHORS.format('runs/first/last.pt', 5)}",
    ),
    "anchors-7": (
        "7 of CIB's own method, of which the sweep takes the best 1 to 7",
        f"{_FIRST.format('cib-table1-moco-v2-image')}\n{_ANCHORS.format('runs/first/last.pt', 7)}",
    ),
    "anchors-coco": (
        "5 of CIB's own method, scored by a first run on whole images",
        f"{_FIRST.format('cib-table3-moco-v2-image')}\n{_ANCHORS.format('runs/first/last.pt', 5)}",
    ),
    "anchors-imagenet-100": (
        "3 of CIB's own method, scored by a first run on whole images",
        f"{_FIRST.format('cib-table8-moco-v2-image')}\n{_ANCHORS.format('runs/first/last.pt', 3)}",
    ),
    "anchors-untrained": ("5 scored by random weights", _ANCHORS.format("untrained:resnet50", 5)),
}
PAPERS = {"OAC": "Object-Aware Cropping for Self-Supervised Learning", "CIB": "Coarse Is Better"}
HEAD = """# Recipes

Made by `objcrop recipes -o ssl/recipes/README.md` from `rows.csv` and the recipes. A row is a number that one of the
two papers prints. What stands under "recipe" runs by `objcrop pretrain --recipe NAME --catalog CATALOG [--boxes BOXES]
--output RUN`; where "at" names a setting, `objcrop sweep NAME …` runs and tabulates all of them. A recipe's comments
say what its paper leaves open. "mAP" and "linear mAP" are what `objcrop probe` measures; for AP of detection
`objcrop export --format detectron2` writes the backbone. "ours" is empty where nobody has measured it.
"""


class Row(NamedTuple):
    """A published row, all text.

    Attributes:
        paper: a name in `PAPERS`.
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


def recipe_page() -> str:
    """Return the page in Markdown."""
    parts = [HEAD, *_needed("Data", DATA), *_needed("Boxes", BOXES)]
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
    for name, (says, commands) in known.items():
        parts += [f"- **{name}**: {says}", *(f"  - `{command}`" for command in commands.splitlines())]
    return [*parts, ""]


def recipe_lines() -> list[str]:
    """Return a line a recipe: its name, the settings of its sweep, and what it needs."""
    lines = []
    for path in sorted(FOLDER.glob("*.yaml")):
        needs = " on ".join(reversed([needs_of(path)[kind] for kind in ("data", "boxes") if kind in needs_of(path)]))
        tried = "; ".join(name_of(setting) for setting in settings(path))
        lines.append("  ".join(part for part in (path.stem, needs, tried) if part))
    return lines
