"""The contact sheet: one row an image, what was drawn from and what came out.

Left the upright image with the drawn box (yellow), each view's region (thin: the box, dilated or shifted where the
policy says so) and window (thick) in the view's colour; right of it the final views as the network gets them,
un-normalised.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.errors import ObjcropError
from objcrop.whole_file import whole_file

CELL, GAP, CAPTION, HEAD = 240, 14, 20, 34
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 30), (120, 120, 120)
YELLOW = (255, 210, 0)
COLOURS = (  # one a view, of which there are 16 at most
    *((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207), (227, 119, 194)),
    *((140, 86, 75), (188, 189, 34), (127, 127, 127), (0, 0, 128), (255, 152, 150), (0, 100, 0), (174, 199, 232)),
    *((128, 0, 64), (152, 223, 138)),
)


def contact_sheet(
    catalog: Catalog,
    rows: np.ndarray,
    plan: ViewPlan,
    views: tuple[torch.Tensor, ...],
    path: str | os.PathLike[str],
    *,
    policy_name: str,
    boxes: BoxTable | None = None,
) -> None:
    """Draw the sheet of a batch and write it as PNG.

    Args:
        catalog: the images.
        rows: int (N,) catalog rows.
        plan: the batch's decisions.
        views: V tensors (N, 3, S, S), normalised by ImageNet's mean and std.
        path: the PNG.
        policy_name: for the heading.
        boxes: the box table, to draw the box itself; None draws regions and windows alone.

    Raises:
        ObjcropError: an image that cannot be read any more.
        OSError: the path cannot be written.
    """
    wide = CELL * 4 // 3
    columns = [GAP]
    for width in (wide, *[CELL] * len(views)):
        columns.append(columns[-1] + width + GAP)
    height = HEAD + len(rows) * (CELL + CAPTION + GAP)
    sheet = Image.new("RGB", (columns[-1], height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    draw.text((GAP, 9), policy_name, INK, font)
    for v in range(len(views)):
        draw.text((columns[1 + v], 9), f"view {v + 1}", COLOURS[v % len(COLOURS)], font)

    for i, row in enumerate(int(r) for r in rows):
        top = HEAD + i * (CELL + CAPTION + GAP)
        box = boxes[row][plan.box[i]] if boxes is not None and plan.box[i] >= 0 else None
        picture = _with_windows(catalog, row, plan, i, wide, box)
        sheet.paste(picture, (columns[0], top))
        for v, view in enumerate(views):
            sheet.paste(as_picture(view[i]), (columns[1 + v], top))
            caption = ImageFont.load_default(11)
            draw.text((columns[1 + v], top + CELL + 3), _decisions(plan, i, v), FAINT, caption)
        key = catalog.key(row)
        which = "no box: whole frame" if plan.box[i] < 0 else f"box {plan.box[i]}"
        draw.text((columns[0], top + CELL + 3), f"{key[-32:]}   {which}", FAINT, ImageFont.load_default(11))
    with whole_file(path) as part:
        sheet.save(part, format="PNG")


def _with_windows(
    catalog: Catalog, row: int, plan: ViewPlan, i: int, wide: int, drawn: np.ndarray | None
) -> Image.Image:
    """Return the image fitted into wide × CELL, with box, regions and windows drawn on it."""
    try:
        image = open_upright(catalog, row)
    except BadImage as error:
        raise ObjcropError(f"{catalog.path(row)} {error}; it was there when the views were made.") from None
    scale = min(wide / image.width, CELL / image.height)
    image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    draw = ImageDraw.Draw(image)

    def frame(box: np.ndarray, colour: tuple[int, ...], thick: int) -> None:
        x0, y0, x1, y1 = (float(c) * scale for c in box)
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=thick)

    for v in range(plan.regions.shape[1]):
        frame(plan.regions[i, v], tuple((c + 255) // 2 for c in COLOURS[v % len(COLOURS)]), 1)
    for v in range(plan.windows.shape[1]):
        frame(plan.windows[i, v], COLOURS[v % len(COLOURS)], 3)
    if drawn is not None:
        frame(drawn, YELLOW, 2)
    return image


def as_picture(view: torch.Tensor) -> Image.Image:
    """Undo the normalisation of one view (3, S, S) and return it as a CELL-sized picture."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((view.float().cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((CELL, CELL))


def _decisions(plan: ViewPlan, i: int, v: int) -> str:
    """Return what happened to a view, in words."""
    happened = {
        "flip": plan.flip[i, v],
        "jitter": plan.jitter[i, v],
        "grey": plan.grey[i, v],
        f"blur {plan.sigma[i, v]:.1f}": plan.sigma[i, v] > 0,
        "solarise": plan.solarise[i, v],
    }
    return ", ".join(name for name, did in happened.items() if did) or "as it is"
