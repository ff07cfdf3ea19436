"""A sheet of segmented images: a row an image, as it is, as it is labelled, and as it was segmented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from objcrop.contact_sheet import PAPER
from objcrop.whole_file import whole_file

CELL, GAP = 240, 6  # pixels
OPAQUE = 0.7  # of the classes' colours over the image


def draw_segmented(shown: Sequence[tuple[Image.Image, npt.NDArray[Any], npt.NDArray[Any]]], path: Path) -> None:
    """Draw images with their labels and predictions over them.

    Args:
        shown: RGB image, class ids (H, W) that it is labelled with, and that were predicted; ids beyond the classes,
            such as 255, show the image alone.
        path: PNG to write.
    """
    heights = [max(round(CELL * image.height / image.width), 1) for image, *_ in shown]
    sheet = Image.new("RGB", (3 * (CELL + GAP) + GAP, sum(heights) + GAP * (len(heights) + 1)), PAPER)
    top = GAP
    for (image, labels, predicted), height in zip(shown, heights, strict=True):
        small = image.resize((CELL, height))
        for column, ids in enumerate((None, labels, predicted)):
            cell = small if ids is None else _over(small, ids)
            sheet.paste(cell, (GAP + column * (CELL + GAP), top))
        top += height + GAP
    with whole_file(path) as part:
        sheet.save(part, format="png")


def _over(image: Image.Image, ids: npt.NDArray[Any]) -> Image.Image:
    small = np.asarray(Image.fromarray(ids.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    colours = Image.fromarray(class_colours()[small])
    opaque = Image.fromarray(np.where(small == 255, 0, round(255 * OPAQUE)).astype(np.uint8))
    return Image.composite(colours, image, opaque)


def class_colours() -> npt.NDArray[np.uint8]:
    """Return VOC's colour of each class id, uint8 (256, 3): its bits in turn become the highest of red, green, blue."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * (7 - bit) + channel < 8:
                colours[:, channel] |= ((ids >> (3 * (7 - bit) + channel) & 1) << bit).astype(np.uint8)
    return colours
