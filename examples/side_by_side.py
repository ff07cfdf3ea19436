"""Pictures to choose by: every crop policy on one image and box, or the boxes of several files on the same images.

    python examples/side_by_side.py crops photos.arrow boxes.arrow --row 3 -o crops.png
    python examples/side_by_side.py boxes photos.arrow gt.arrow bing.arrow edge-boxes.arrow -o boxes.png

Left of a row of crops stands the image with the box (yellow), what each view's crop is drawn from (thin) and the crop
(thick); right of it the views, whose colours are left as they are, but for soco's. Of boxes the ten best are drawn, the
best of them thick. The images must be files of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import objcrop

POLICIES = (
    "scene-scene",
    "obj-scene",
    "obj-obj",
    "obj-obj+dilate",
    "dilate-dilate",
    "obj-obj+shift",
    "within-box",
    "soco",
    "centre",
)
WITHOUT_BOXES = ("scene-scene", "soco", "centre")
HEIGHT, NAME, GAP = 144, 124, 6  # pixels of a picture, of the names beside them, and between all
PAPER, INK, YELLOW, VIEWS = "white", "black", "#ffd200", ("#d62728", "#1f77b4", "#2ca02c")


def upright(catalog: objcrop.Catalog, row: int) -> Image.Image:
    """Return an image as its boxes see it."""
    return ImageOps.exif_transpose(Image.open(catalog.path(row)).convert("RGB"))


def small(image: Image.Image) -> Image.Image:
    """Return an image of the height of a row."""
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


def frame(picture: Image.Image, box: Sequence[float], scale: float, colour: str, thick: int) -> None:
    """Draw a box of the image on its small picture."""
    x0, y0, x1, y1 = (scale * float(side) for side in box)
    ImageDraw.Draw(picture).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=thick)


def crops_of(catalog: objcrop.Catalog, boxes: objcrop.BoxTable, row: int, policy: str, epoch: int) -> list[Image.Image]:
    """Return the image with what a policy draws from its first box, and the views."""
    one = catalog.take([row])
    box = objcrop.BoxTable.from_arrays(one, [boxes[row][:1]], method="the first box")
    options = {} if policy in WITHOUT_BOXES else {"boxes": box}
    options |= {} if policy == "soco" else {"augment": "none"}  # whose views have colours of their own
    with objcrop.load_views(one, crops=policy, size=HEIGHT, batch_size=1, device="cpu", **options) as loader:
        loader.set_epoch(epoch)
        batch = next(iter(loader))
    image = upright(one, 0)
    picture, scale = small(image), HEIGHT / image.height
    for region, colour in zip(batch.plan.regions[0], VIEWS):
        frame(picture, region, scale, colour, 1)
    for window, colour in zip(batch.plan.windows[0], VIEWS):
        frame(picture, window, scale, colour, 3)
    if "boxes" in options:
        frame(picture, box[0][0], scale, YELLOW, 2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = [np.clip(view[0].permute(1, 2, 0).numpy() * std + mean, 0, 1) * 255 for view in batch.views]
    return [picture, *(Image.fromarray(view.round().astype(np.uint8)) for view in pixels)]


def boxed(catalog: objcrop.Catalog, boxes: objcrop.BoxTable, row: int) -> Image.Image:
    """Return the image with its ten best boxes."""
    image = upright(catalog, row)
    picture = small(image)
    for i in reversed(range(min(10, len(boxes[row])))):
        frame(picture, boxes[row][i], HEIGHT / image.height, YELLOW if i else VIEWS[0], 1 if i else 3)
    return picture


def table(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Return the pictures of each name, a row a name."""
    width = NAME + max(sum(picture.width + GAP for picture in pictures) for pictures in rows.values())
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + GAP)), PAPER)
    font = ImageFont.load_default(13)
    for i, (name, pictures) in enumerate(rows.items()):
        x, y = NAME, i * (HEIGHT + GAP)
        ImageDraw.Draw(sheet).text((GAP, y + HEIGHT // 2 - 8), name, INK, font)
        for picture in pictures:
            sheet.paste(picture, (x, y))
            x += picture.width + GAP
    return sheet


def main() -> None:
    """Draw one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("crops", "boxes"))
    parser.add_argument("catalog")
    parser.add_argument("boxes", nargs="+")
    parser.add_argument("--row", type=int, nargs="+", default=[0], help="rows of the catalog; of crops the first")
    parser.add_argument("--epoch", type=int, default=0, help="whose crops")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()

    catalog = objcrop.Catalog.load(options.catalog)
    tables = {Path(path).stem: objcrop.BoxTable.load(path, catalog) for path in options.boxes}
    if options.what == "crops":
        first = next(iter(tables.values()))
        rows = {policy: crops_of(catalog, first, options.row[0], policy, options.epoch) for policy in POLICIES}
    else:
        rows = {name: [boxed(catalog, boxes, row) for row in options.row] for name, boxes in tables.items()}
    table(rows).quantize(256, dither=Image.Dither.NONE).save(options.output)


if __name__ == "__main__":
    main()
