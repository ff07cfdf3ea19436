"""A sheet of detections: the test images of the greatest and of the least success, as they are annotated and as found.

An image is asked for as many detections as it has objects, the surest, so that no threshold of scores is chosen: its
success is the share of objects that they find (class, and an overlap of more than a half). Of equal ones the image of
more objects says more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from objcrop.catalog import Catalog
from objcrop.contact_sheet import COLOURS, FAINT, INK, PAPER
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import printable
from objcrop.ssl.transfer.detections import Detections
from objcrop.ssl.transfer.voc_ap import nearest_objects
from objcrop.whole_file import whole_file

CELL, GAP, CAPTION, HEAD = 300, 8, 18, 30  # pixels
SHOWN = 4  # images of the greatest success, and as many of the least
BRIGHT = [colour for colour in COLOURS if max(colour) - min(colour) > 50]  # of classes; grey is what does not count
OPAQUE = 110  # of 255: masks over the image
FOUND = 0.5  # overlap that must be exceeded


def successes(catalog: Catalog, detections: Detections) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many objects each image has, and how many of them its surest detections find, int64 (N,) each.

    Difficult objects and crowds are none; so many detections are looked at as there are objects.
    """
    truth, ends = catalog.all_annotations(), catalog.box_offsets
    counted = ~(truth.difficult | truth.crowd)
    objects = np.diff(np.concatenate([[0], np.cumsum(counted)])[ends - ends[0]])
    overlap, nearest = nearest_objects(catalog, detections)
    found = np.zeros(len(catalog), np.int64)
    for row, these in enumerate(_surest(detections, objects)):
        finds = nearest[these][overlap[these] > FOUND]
        found[row] = len(np.unique(finds[counted[finds]]))
    return objects, found


def draw_detected(catalog: Catalog, detections: Detections, path: Path) -> None:
    """Draw the sheet: left images of the greatest success, right those of the least, each as annotated and as found.

    Args:
        catalog: the images; what cannot be read is left out.
        detections: on these.
        path: PNG to write; nothing is written where no image has an object.
    """
    objects, found = successes(catalog, detections)
    rows = np.flatnonzero(objects)
    share = found[rows] / objects[rows]
    best, worst = (_readable(catalog, rows[np.lexsort((rows, -objects[rows], way * share))]) for way in (-1, 1))
    if not best:
        return
    surest = _surest(detections, objects)
    heights = [max(_fitted(image)[1] for _, image in pair) + CAPTION + GAP for pair in zip(best, worst, strict=True)]
    sheet = Image.new("RGB", (4 * (CELL + GAP) + GAP, HEAD + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(("greatest success: annotated", "found", "least success: annotated", "found")):
        draw.text((GAP + column * (CELL + GAP), 8), head, INK, ImageFont.load_default(14))
    for side, shown in enumerate((best, worst)):
        for i, (row, image) in enumerate(shown):
            left, top = GAP + 2 * side * (CELL + GAP), HEAD + sum(heights[:i])
            sheet.paste(_with_objects(catalog, row, image), (left, top))
            sheet.paste(_with_found(catalog, detections, surest[row], image), (left + CELL + GAP, top))
            says = f"{found[row]} of {objects[row]} found, {printable(catalog.key(row))[-36:]}"
            draw.text((left, top + heights[i] - CAPTION - GAP + 2), says, FAINT, ImageFont.load_default(12))
    with whole_file(path) as part:
        sheet.save(part, format="png")


def _surest(detections: Detections, most: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return for each image which of all detections are its surest, at most so many, the surest first."""
    ends = np.searchsorted(detections.row, np.arange(len(most) + 1)).tolist()
    each = zip(ends[:-1], ends[1:], most.tolist(), strict=True)
    return [begin + np.argsort(-detections.scores[begin:end], kind="stable")[:k] for begin, end, k in each]


def _readable(catalog: Catalog, rows: npt.NDArray[np.int64]) -> list[tuple[int, Image.Image]]:
    """Return the first rows whose images can be read, with these."""
    shown: list[tuple[int, Image.Image]] = []
    for row in rows.tolist():
        if len(shown) == SHOWN:
            break
        with suppress(BadImage):
            shown.append((row, open_upright(catalog, row)))
    return shown


def _with_objects(catalog: Catalog, row: int, image: Image.Image) -> Image.Image:
    truth = catalog.annotations(row)
    names = [catalog.classes[label] for label in truth.classes]
    hidden = truth.difficult | truth.crowd
    colours = [FAINT if out else BRIGHT[label % len(BRIGHT)] for label, out in zip(truth.classes, hidden)]
    return _drawn(image, truth.boxes, names, colours, catalog.masks(row))


def _with_found(
    catalog: Catalog, detections: Detections, these: npt.NDArray[np.int64], image: Image.Image
) -> Image.Image:
    labels = detections.labels[these]
    names = [f"{catalog.classes[label]} {score:.2f}" for label, score in zip(labels, detections.scores[these])]
    masks = [None if detections.masks is None else detections.masks[i] for i in these]
    return _drawn(image, detections.boxes[these], names, [BRIGHT[label % len(BRIGHT)] for label in labels], masks)


def _fitted(image: Image.Image) -> tuple[int, int]:
    """Return the size at which an image fits into a cell."""
    scale = CELL / max(image.size)
    return max(round(image.width * scale), 1), max(round(image.height * scale), 1)


def _drawn(
    image: Image.Image,
    boxes: npt.NDArray[Any],
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    masks: Sequence[dict[str, Any] | None],
) -> Image.Image:
    """Return an image in a cell, with boxes, their names, and masks over it."""
    from pycocotools import mask as coco_mask

    small = image.resize(_fitted(image))
    cell = Image.new("RGB", (CELL, small.height), PAPER)
    scale = np.tile(np.array(small.size) / image.size, 2)
    for mask, colour in zip(masks, colours, strict=True):
        if mask is not None:
            opaque = Image.fromarray(coco_mask.decode(mask) * np.uint8(OPAQUE)).resize(small.size)
            small.paste(colour, mask=opaque)
    cell.paste(small)
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(11)
    for box, name, colour in zip(boxes, names, colours, strict=True):
        x0, y0, x1, y1 = (box * scale).tolist()
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=2)
        text = printable(name)
        at = (min(max(x0, 0), CELL - draw.textlength(text, font) - 2), max(y0 - 12, 0))
        draw.rectangle(draw.textbbox(at, text, font), fill=colour)
        draw.text(at, text, (255, 255, 255), font)
    return cell
